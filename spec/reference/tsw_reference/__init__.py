"""A second reader of the TSW format, written from spec/tsw-1.md alone: standard library only, slow, to be read.

The modules follow the specification: `frame` (sections 3, 4), `msgpack` (5.1), `fields` (5.2), `tensors` (5.3), `tasks`
(5.4, 7), `shared` (5.5), `router` (5.6), `coefficients` (5.7), `segments` (8), `layout` (the tables), `codecs` (9) with
`zstd` and `zstd_entropy` (RFC 8878) and `bits`, `numerics` and `application` (10), `digest` (11). `reader` checks a file
in that order, `model` has what it holds, `report` says it as JSON, `safetensors` and `command` give an expert back.
"""

from .errors import BrokenError, UsageError
from .model import File
from .reader import read
from .report import describe

__all__ = ["BrokenError", "File", "UsageError", "describe", "read"]
