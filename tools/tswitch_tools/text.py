"""Numbers and names as people read them."""

from __future__ import annotations

_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_COUNTS = ("", " k", " M", " G", " T")


def size(nbytes: float) -> str:
    """Bytes with a decimal unit: "1.23 MB"."""
    unit, scaled = _scale(nbytes, len(_SIZES))
    return f"{scaled} {_SIZES[unit]}"


def count(number: float) -> str:
    """A large number: "22.7 M"."""
    unit, scaled = _scale(number, len(_COUNTS))
    return f"{scaled}{_COUNTS[unit]}"


def rounded(number: float) -> str:
    """Three digits, all of those before the point: "0.603", "12.5", "12345"."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def printable(text: object) -> str:
    """Text in which nothing moves the cursor or breaks the line: other characters come as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


def _scale(number: float, units: int) -> tuple[int, str]:
    unit = 0
    while number >= 999.5 and unit + 1 < units:
        number /= 1000
        unit += 1
    return unit, rounded(number)
