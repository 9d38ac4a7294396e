"""Fuzzing of the library: README.md says how to run it and what each harness asserts.

targets/        the harnesses: functions that take bytes, raise for a broken promise, and return nothing
limits.py       how much time and memory one input may take
memory.py       files that lie in memory
modules.py      programs of the repository that belong to no package
parts.py        a .tsw file taken apart, and put together again with right checksums
mutation.py     mutations that know the format, in plain Python
seeds.py        what each harness begins with
strategies.py   the same inputs as Hypothesis strategies, for tests/property
child.py        one harness in one process: coverage-guided (Atheris), or at random
campaign.py     many of them; counts, records and prints
attacks.py      files made to cost as much as they can, for spec/security.md
attack_cost.py  what they cost
"""
