"""IEEE 754 arithmetic on exact fractions: what section 10 asks for, without any floating-point hardware.

A `Number` is NaN, an infinity or a fraction with a sign (which zeros need). `Format.round` is the only rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal


@dataclass(frozen=True, slots=True)
class Number:
    """`value` counts where `kind` is finite, and is never negative: `negative` is the sign."""

    kind: Literal["nan", "infinite", "finite"]
    negative: bool = False
    value: Fraction = Fraction(0)

    @property
    def signed(self) -> Fraction:
        """The value with its sign."""
        return -self.value if self.negative else self.value


NAN = Number("nan")


@dataclass(frozen=True, slots=True)
class Format:
    """A binary interchange format: bits of the exponent, and of the fraction after the leading one."""

    exponent: int
    fraction: int

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return 1 + self.exponent + self.fraction

    @property
    def _bias(self) -> int:
        return (1 << self.exponent - 1) - 1

    def decode(self, bits: int) -> Number:
        """The number that these bits mean."""
        negative = bool(bits >> self.bits - 1)
        exponent = bits >> self.fraction & (1 << self.exponent) - 1
        fraction = bits & (1 << self.fraction) - 1
        if exponent == (1 << self.exponent) - 1:
            return NAN if fraction else Number("infinite", negative)
        if exponent:
            fraction |= 1 << self.fraction
        power = max(exponent, 1) - self._bias - self.fraction
        return Number("finite", negative, Fraction(fraction) * Fraction(2) ** power)

    def encode(self, number: Number) -> int:
        """The bits nearest to a number, ties to even."""
        sign = number.negative << self.bits - 1
        top = (1 << self.exponent) - 1 << self.fraction
        if number.kind == "nan":
            return top | 1 << self.fraction - 1
        if number.kind == "infinite":
            return sign | top
        if not number.value:
            return sign
        # Exponent of the leading bit, then of the last bit that the format keeps.
        value = number.value
        exponent = value.numerator.bit_length() - value.denominator.bit_length()
        if Fraction(2) ** exponent > value:
            exponent -= 1
        exponent = max(exponent, 1 - self._bias)
        # round() of a Fraction is to nearest, ties to even. A carry into the next exponent comes out right by itself.
        digits = round(value / Fraction(2) ** (exponent - self.fraction))
        bits = digits + (exponent + self._bias - 1 << self.fraction)
        return sign | min(bits, top)

    def round(self, number: Number) -> Number:
        """The number of this format nearest to `number`."""
        return self.decode(self.encode(number))


F16 = Format(5, 10)
BF16 = Format(8, 7)
F32 = Format(8, 23)
F64 = Format(11, 52)
FORMATS = {"F16": F16, "BF16": BF16, "F32": F32, "F64": F64}


def product(a: Number, b: Number) -> Number:
    """The exact product."""
    negative = a.negative != b.negative
    if "nan" in (a.kind, b.kind):
        return NAN
    if "infinite" in (a.kind, b.kind):
        other = b if a.kind == "infinite" else a
        return NAN if other.kind == "finite" and not other.value else Number("infinite", negative)
    return Number("finite", negative, a.value * b.value)


def total(a: Number, b: Number) -> Number:
    """The exact sum; zeros of two signs make +0."""
    if "nan" in (a.kind, b.kind):
        return NAN
    if a.kind == "infinite":
        return NAN if b.kind == "infinite" and a.negative != b.negative else a
    if b.kind == "infinite":
        return b
    value = a.signed + b.signed
    if not value:
        return Number("finite", a.negative and b.negative and not a.value)
    return Number("finite", value < 0, abs(value))


def opposite(a: Number) -> Number:
    """The number with the other sign."""
    return Number(a.kind, not a.negative, a.value)


def exact(value: Fraction | int) -> Number:
    """A fraction as a number; zero is +0."""
    return Number("finite", value < 0, abs(Fraction(value)))
