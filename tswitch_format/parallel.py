"""Threads, for the tools and other people's code as well: `tswitch_format._parallel` says more.

ordered_map    `map` over threads, results in order, memory bounded
thread_count   what `threads` means, where it may be None
"""

from __future__ import annotations

from tswitch_format._parallel import ordered_map, thread_count

__all__ = ["ordered_map", "thread_count"]
