"""What the library promises about size, memory and speed, measured. `python -m benchmarks --list`; see README.md."""
