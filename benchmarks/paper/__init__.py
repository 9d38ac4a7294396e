"""`make paper`: what every method keeps of real experts, and at what size. `make frontier`: which rule of `pack` is the best.

data         the tasks, each in three parts: which serves what
train        for each seed a base, and an expert for each task
evaluation   accuracy on a part, and batches to learn from
methods      methods that need the task's data, for tswitch_tools.sweep; auto: Auto-Switch
pulse        experts of which a share was dropped
jobs         what is measured of one seed; running: jobs in processes
report       tables, JSON and plots in benchmarks/results; plots: the curves
frontier     every rule at every density, on validation data: what the defaults of `pack` were chosen by
ideas        rules that the format cannot hold, computed on arrays: why it need not
"""
