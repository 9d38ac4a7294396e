"""`make paper`: what the methods keep of real experts, at what size. Six tasks, three seeds.

data.py     the tasks, each in three parts
train.py    for each seed a base, and an expert for each task
"""
