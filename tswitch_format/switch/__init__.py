"""Floor 3: what a switch means. Spec section 10, design section 7.

apply.py        base + switch -> expert, the NumPy reference that every other backend equals bit for bit
tensor.py       Switch: mask, sign, indices, delta, slices, apply of one tensor
file.py         SwitchFile: a .tsw file with its tasks, what `tswitch_format.open` gives
base.py         is this the base that the file was made from?
restore.py      base + file -> checkpoint
validate.py     a file against the specification and its base
overlap.py      the masks of several tasks compared: elements by the number of tasks, pairs of tasks
transfer.py     entries from file to file: bundle, extract, repack
recalibrate.py  other knobs and factors for a task, all else copied
routing.py      Router: which tasks a sample needs; a file with samples of its tasks
tables.py       CoefficientTable: how much of a task goes into a tensor; a file with a table
merge.py        all tasks of a file in one model: sum, TIES, consensus

options.py      what `pack` can be told, checked
pairing.py      base and expert by name: which tensors become switches, which are dense, which do not fit
task_vector.py  expert - base in blocks, never whole; blocks.py: the arithmetic of one, in NumPy or compiled_scan.py
survivors.py    what a pass over it finds
scores.py       whose scores are whose, where a checkpoint of external scores selects
select.py       which elements stay: thresholds, exact, in streamed passes
threshold.py    one threshold for all tensors
spectral.py     what elements are worth by the directions that they carry; compiled_pack.py: its loops
knob.py         how they are scaled: knob, row and column factors
encode.py       one tensor -> encoded entry
pack.py         base + expert -> file

given.py        switches, masks and vectors that somebody else made
build.py        these -> file
experts.py      several experts of one base, read beside it
multitask.py    several experts -> one vector and a mask for each: TALL-masks, EMR
multitask_methods.py  the arithmetic of that, TIES too

planes.py       a switch packed for use in memory; compiled.py: its loops, compiled for the CPU
"""
