"""What `pack` can be told, checked before anything is read; and as the recipe that the file records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Literal

from tswitch_format._layout import PROFILES, FactorDType
from tswitch_format.errors import OptionError

Select = Literal["spectral", "tensor", "tensor-signed", "global"]
Knob = Literal["projection", "norm", "rms", "mean"]
KnobPer = Literal["tensor", "row", "row-col"]

SELECTS = ("spectral", "tensor", "tensor-signed", "global")
KNOBS = ("projection", "norm", "rms", "mean")
KNOB_PERS = ("tensor", "row", "row-col")
KNOB_DTYPES = ("u4", "u8", "f16", "f32")
DEFAULT_DENSITY = 0.015
DEFAULT_KNOB_DTYPE = "u4"
COARSE = 17  # between the u8 codes that u4 has: 0, 17, ... 255
PAPER_DISCARD = 0.6  # the authors' ratio for ViT-B/32 and ViT-L/14


@dataclass(frozen=True, slots=True)
class KnobDType:
    """How factors are stored: as `stored`, and where that is u8, as multiples of `step`. u4 is 16 levels of the u8 codes, which
    zstd stores in the few bits that they need."""

    name: str
    stored: FactorDType
    step: int = 1

    @classmethod
    def of(cls, name: str) -> KnobDType:
        """Of one of KNOB_DTYPES."""
        return cls(name, FactorDType.U8, COARSE) if name == "u4" else cls(name, FactorDType[name.upper()])


@dataclass(frozen=True, slots=True)
class PackOptions:
    """Selection, scaling and policies of one `pack`. Made by `PackOptions.of`, which checks them.

    Of `density` (share of all elements that stay), `discard` (share of the non-zero ones that go) and `target_size` (file
    size in % of fp32) exactly one is set. `paper`: the authors' rule with its quirks.
    """

    density: float | None
    discard: float | None
    target_size: float | None
    select: Select
    knob: Knob
    knob_per: KnobPer
    knob_dtype: KnobDType
    paper: bool
    dense: Sequence[str]
    dense_mismatch: bool
    dense_nonfinite: bool
    profile: str

    @classmethod
    def of(
        cls,
        *,
        density: float | None = None,
        discard: float | None = None,
        target_size: float | None = None,
        select: str | None = None,
        knob: str | None = None,
        knob_per: str | None = None,
        knob_dtype: str = DEFAULT_KNOB_DTYPE,
        scored: bool = False,
        preset: str | None = None,
        dense: Sequence[str] = (),
        on_mismatch: str = "error",
        nonfinite: str = "error",
        profile: str = "archive",
    ) -> PackOptions:
        """Check and complete the options; `scored`: with external scores.

        Raises OptionError that names the option, what it may be and what it is.
        """
        _one_of("preset", preset, (None, "paper"))
        paper = preset == "paper"
        if paper and (density is not None or target_size is not None or select or knob or knob_per):
            raise OptionError("preset paper fixes selection and knob; with it only discard can be set")
        amounts = [a for a in (density, discard, target_size) if a is not None]
        if len(amounts) > 1:
            raise OptionError("density, discard and target-size exclude each other; give one of them")
        if not amounts:
            density, discard = (None, PAPER_DISCARD) if paper else (DEFAULT_DENSITY, None)
        _check_range("density", density, "a number above 0 and at most 1", lambda x: 0 < x <= 1)
        _check_range("discard", discard, "a number at least 0 and below 1", lambda x: 0 <= x < 1)
        _check_range("target-size", target_size, "a percentage above 0 and at most 100", lambda x: 0 < x <= 100)
        if scored and paper:
            raise OptionError(
                "preset paper selects by magnitude; leave score out, or give discard and select instead of the preset"
            )
        if scored and select == "spectral":
            raise OptionError(
                "select spectral scores elements itself; leave score out, or select tensor, tensor-signed or global"
            )
        chosen_select = select or ("tensor-signed" if paper else "tensor" if scored else "spectral")
        chosen_knob = knob or ("rms" if paper else "projection")
        chosen_per = knob_per or ("row-col" if chosen_knob == "projection" else "tensor")
        _one_of("select", chosen_select, SELECTS)
        _one_of("knob", chosen_knob, KNOBS)
        _one_of("knob-per", chosen_per, KNOB_PERS)
        _one_of("knob-dtype", knob_dtype, KNOB_DTYPES)
        _one_of("on-mismatch", on_mismatch, ("error", "dense"))
        _one_of("nonfinite", nonfinite, ("error", "dense"))
        _one_of("profile", profile, PROFILES)
        if chosen_per == "row-col" and chosen_knob != "projection":
            raise OptionError(
                f"knob-per row-col is defined for knob projection only, found knob {chosen_knob}; use knob-per row"
            )
        if isinstance(dense, str):
            raise OptionError(f"dense: expected a list of patterns, found the string {dense!r}; write [{dense!r}]")
        return cls(
            density,
            discard,
            target_size,
            chosen_select,  # type: ignore[arg-type]  # checked just above, as the next two
            chosen_knob,  # type: ignore[arg-type]
            chosen_per,  # type: ignore[arg-type]
            KnobDType.of(knob_dtype),
            paper,
            tuple(dense),
            on_mismatch == "dense",
            nonfinite == "dense",
            profile,
        )

    def recipe(self, density: float | None) -> dict[str, str]:
        """What the file records (spec section 12), but for scores. `density`: as asked for, or as found for a target size."""
        found: dict[str, str] = {"select": self.select, "knob": self.knob, "knob_per": self.knob_per}
        if self.knob_per != "tensor":
            found["knob_dtype"] = self.knob_dtype.name
        for name, value in (("density", density), ("discard", self.discard), ("target_size", self.target_size)):
            if value is not None:
                found[name] = repr(float(value))
        if self.paper:
            found["preset"] = "paper"
        return found


@dataclass(frozen=True, slots=True)
class Amount:
    """How many elements stay: a share of all elements, or what is left when a share of the non-zero ones is discarded."""

    density: float | None
    discard: float | None

    def quota(self, elements: int, nonzero: int) -> int:
        """How many of `elements` elements, of which `nonzero` are not zero, stay; at least 1 where there is something."""
        if self.density is not None:
            # The decimal that the user wrote, exactly: 0.07 of 100 is 7, though 0.07 * 100 > 7 in binary.
            quota = math.ceil(Fraction(repr(float(self.density))) * elements)
        else:
            quota = max(1, authors_quota(nonzero, self.discard or 0.0))
        return min(quota, nonzero)


def authors_quota(nonzero: int, discard: float) -> int:
    """How many of the entries of one sign the authors keep: their formula, in Python floats exactly so (methods.md)."""
    return int(nonzero * (1 - discard))


def _one_of(option: str, value: str | None, allowed: Sequence[str | None]) -> None:
    if value not in allowed:
        raise OptionError(f"{option}: expected {', '.join(str(a) for a in allowed if a)}, found {value!r}")


def _check_range(option: str, value: float | None, expected: str, good: Callable[[float], bool]) -> None:
    if value is not None and not (isinstance(value, Real) and good(float(value))):
        raise OptionError(f"{option}: expected {expected}, found {value!r}")
