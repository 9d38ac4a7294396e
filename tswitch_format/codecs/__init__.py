"""Floor 1: bytes <-> arrays, no files. Spec section 9.

    plane.py    a plane of bits <-> the smallest of its encodings: what the other floors call
    gaps.py     gap bytes + zstd, and Rice codes: planes with few ones
    runs.py     random access into planes of gap bytes or bits, for planes that stay packed in memory
    bits.py     bit strings: positions <-> packed bits, fields of k bits
    array.py    runs of elements, raw or zstd
    zstd.py     frames as the specification wants them
    loops.py    whether compiled.py does the slow parts of decoding

A plane is given and taken as the positions of its ones (NDArray[int64], ascending) or as a bit string (NDArray[uint8],
least significant bit first). Every decoder is told the size of what it decodes and raises PayloadError rather than
decode anything else.
"""

from tswitch_format._layout import Codec

__all__ = ["Codec"]
