"""How the vectors are made; run by ../make_vectors.py. It shares no code with the library, whose mistakes it must not share.

floats.py        IEEE 754 arithmetic on exact fractions
planes.py        bit strings, gaps, Rice codes
zstd_frames.py   frames by hand, frames that zstandard made once
model.py         what a file holds, and the JSON that decoders print of it
writing.py       a file's bytes, with hooks that break one rule
material.py      masks, texts and frames that several groups share
suite.py         files and manifest as they are collected

the vectors: valid.py, masked.py, router.py, tables.py, limits.py, broken_frame.py, broken_document.py, broken_records.py,
    broken_segments.py, broken_content.py, broken_masked.py, broken_router.py, broken_tables.py, newer.py, applying.py,
    applying_masked.py, applying_tables.py
"""
