"""Knobs and factors of a task refined on samples: `calibrate`."""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tswitch_format._layout import FactorDType
from tswitch_format.atomic import AtomicFile, check_output, output_errors, sync_folder
from tswitch_format.errors import OptionError
from tswitch_format.switch.file import SwitchFile
from tswitch_format.switch.knob import FittedKnob
from tswitch_format.switch.recalibrate import calibrated_recipe, with_knobs
from tswitch_format.switch.tables import Share
from tswitch_format.switch.transfer import open_whole
from tswitch_format.torch.activation import Change
from tswitch_format.torch.combination import changes
from tswitch_format.torch.expert import Expert, load_expert
from tswitch_format.torch.held import HeldModel
from tswitch_format.torch.losses import checked_loss
from tswitch_format.torch.packed import PackedSwitch
from tswitch_format.torch.refining import Refined, refined_weight, with_fitted

Batch = TypeVar("Batch")
Loss = Callable[[Any, Batch], Tensor]  # Any: the model, of whatever class it is
Validate = Callable[[Any], float]
Progress = Callable[[int, int], None]

STEPS = 100
LEARNING_RATE = 0.02  # of logarithms: at first each step changes what learns by about 2 %
CHECKS = 4


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """What came of a calibration.

    `kept`: whether the file at `path` has refined knobs; if not, its content is that of the file before. `before`: the file as
    it was, validated. `after`: the best refined knobs, rounded as they are stored; those of `path` where they were kept.
    `steps`: of descent that lead to `after`. `switches`: how many have knobs that learned. `content_id`: of the file at `path`,
    empty where it has none.
    """

    path: Path
    task: str
    kept: bool
    before: float
    after: float
    steps: int
    switches: int
    content_id: str


def calibrate(
    model: nn.Module,
    path: str | PathLike[str],
    out: str | PathLike[str],
    loss_fn: Loss[Batch],
    batches: Iterable[Batch],
    validate: Validate,
    *,
    task: str | None = None,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    checks: int = CHECKS,
    check_base: bool = True,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Refine knobs and row and column factors of a task by gradient descent, and write the file with them to `out`.

    Masks and signs stay as they are stored, and so does all else of the file but the task's recipe (spec section 12). It never
    makes the figure worse: where no refined knobs, rounded as they are stored and read back, validate strictly better than the
    file at `path`, `out` has the knobs of that file, and the result says `kept=False`.

    `model`: an nn.Module that holds the base, which is checked. `loss_fn(model, batch)`: a scalar tensor that depends on the
    model's parameters. `batches`: a few hundred samples; gone through again and again, a batch a step. `validate(model)`: a
    number, higher is better, on samples that are neither those nor the ones that the figure is reported on. Both get the model
    without wrappers of torch.compile and of parallel training, in evaluation mode, with the task in it; what they do to
    modes and buffers is undone, and they must not change parameters. `task` may be left out where the file has one only.

    `steps` of Adam with `learning_rate`, which falls to 0 as a cosine, on logarithms: stored values are multiplied by e^x. So
    what is 0 stays 0, no sign changes, and no factors appear where there are none. `checks`: how often, evenly over the
    steps, the knobs so far are rounded and validated; the best are kept. Ternary entries of the model's parameters learn;
    those of buffers, and dense ones, are applied as they are. `check_base`: as for `apply_`. `progress` gets steps done and in
    all.

    When it returns or raises, the model is what it was to the bit, gradients asked for and modes too. (A SwitchBank that was
    made before takes its weights for changed.) Memory on the model's devices: the packed task; for a step a copy of each
    weight that learns, and its gradient; an i8 for each element of the largest of them, since planes stay packed otherwise;
    the original values of touched elements; a copy of all buffers.

    Raises BaseMismatchError, UnknownNameError, OptionError (also for a loss or a validation that is not finite, and for masked
    entries), CheckpointError, FormatError or OutputError; then nothing is written.
    """
    path, out = Path(path), Path(out)
    check_output(out, [path])
    _check(loss_fn, batches, validate, steps, learning_rate, checks)
    AtomicFile(out).abort()  # what cannot be written to is found out now, not when all the work is done
    held = HeldModel(model)
    try:
        held.hold()
        with torch.inference_mode(False):
            calibration = _Calibration(held, path, out, task, validate, check_base)
            found = calibration.run(loss_fn, batches, steps, float(learning_rate), checks, progress)
        held.restore()  # in here: an interrupt may come meanwhile
    except BaseException:
        held.restore()
        raise
    return found


def _check(loss_fn: Any, batches: Any, validate: Any, steps: Any, learning_rate: Any, checks: Any) -> None:
    for what, given in (("loss_fn", loss_fn), ("validate", validate)):
        if not callable(given):
            raise OptionError(f"{what}: expected a function, found {type(given).__name__}")
    if not isinstance(batches, Iterable) or iter(batches) is batches:
        raise OptionError(
            f"batches: expected something to go through again and again, such as a list or a DataLoader, found "
            f"{type(batches).__name__}"
        )
    for what, given in (("steps", steps), ("checks", checks)):
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise OptionError(f"{what}: expected a whole number from 1 on, found {given!r}")
    if checks > steps:
        raise OptionError(f"checks: expected at most one a step, {steps}, found {checks}")
    if not (isinstance(learning_rate, Real) and 0 < float(learning_rate) < math.inf):
        raise OptionError(f"learning_rate: expected a number above 0, found {learning_rate!r}")


@dataclass(frozen=True, slots=True)
class _Found:
    """Rounded knobs by the file's names, after so many steps."""

    steps: int
    figure: float
    knobs: Mapping[str, FittedKnob]


class _Calibration:
    def __init__(
        self, held: HeldModel, path: Path, out: Path, task: str | None, validate: Validate, check_base: bool
    ) -> None:
        self._held = held
        self._path = path
        self._out = out
        self._validate = validate
        self._check_base = check_base
        self._expert = load_expert(held.weights, path, task, check_base=check_base)
        self._task = self._expert.task
        self._learning = self._chosen()
        types, self._recipe = _stored(path, self._task)
        # By the file's names: two tensors of the model may have the switch of one.
        self._refined = {switch.name: Refined(switch, types[switch.name]) for switch in self._learning.values()}
        self._used = 0  # how many batches there are, or were used

    def _chosen(self) -> dict[str, PackedSwitch]:
        """The switches that learn, by the model's names."""
        where = f"{self._path}: task {self._task!r}"
        for switch in self._expert.switches.values():
            if switch.vector is not None:
                raise OptionError(
                    f"{where}: tensor {switch.name!r}: expected a ternary entry, found a masked one, whose vector other tasks "
                    "share; calibrate tasks of masks, signs and knobs only"
                )
        parameters = self._held.parameters
        found = {name: s for name, s in self._expert.switches.items() if s.active and name in parameters}
        if not found:
            raise OptionError(
                f"{where}: expected ternary entries of parameters of the model, with active elements, found none; there are no "
                "knobs to refine"
            )
        return found

    def run(
        self,
        loss_fn: Loss[Batch],
        batches: Iterable[Batch],
        steps: int,
        learning_rate: float,
        checks: int,
        progress: Progress | None,
    ) -> CalibrationResult:
        """Descend, keep the best, write."""
        before = self._figure(self._expert)
        best: _Found | None = None
        due = {steps * (number + 1) // checks for number in range(checks)}
        for done in self._descent(loss_fn, batches, steps, learning_rate):
            if done in due:
                found = self._found(done)
                if best is None or found.figure > best.figure:
                    best = found
                self._begin()
            if progress:
                progress(done, steps)
        if best is None:  # cannot be: the last step is due
            raise OptionError("batches: expected at least one, found none")
        how = f"{self._used} batches, {best.steps} of {steps} steps, learning rate {learning_rate!r}"
        return self._write(before, best, how)

    def _descent(
        self, loss_fn: Loss[Batch], batches: Iterable[Batch], steps: int, learning_rate: float
    ) -> Iterator[int]:
        """Take steps; after each, how many were taken."""
        learning = [each for refined in self._refined.values() for each in refined.logarithms]
        optimizer = torch.optim.Adam(learning, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        self._begin()
        for done, batch in enumerate(self._again(batches, steps), 1):
            optimizer.zero_grad()
            with torch.enable_grad():
                weights = {
                    name: refined_weight(self._held.weights[name], switch, self._refined[switch.name])
                    for name, switch in self._learning.items()
                }
                try:
                    self._held.swap(weights)
                    loss = checked_loss(
                        loss_fn(self._held.module, batch),
                        where=f"loss_fn: step {done}",
                        advice="lower learning_rate, or look at the batch",
                    )
                    loss.backward()  # type: ignore[no-untyped-call]  # while they are there: checkpointing runs parts again
                finally:
                    self._held.swap_back()
            optimizer.step()
            schedule.step()
            for refined in self._refined.values():
                refined.keep_in_range()
            yield done

    def _again(self, batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
        """So many batches, from the first again after the last."""
        left = steps
        while left:
            number = 0
            for number, batch in enumerate(batches, 1):
                self._used = max(self._used, number)
                yield batch
                left -= 1
                if not left:
                    return
            if not number:
                raise OptionError("batches: expected at least one, found none; they must be there each time anew")

    def _begin(self) -> None:
        """The model with what does not learn."""
        self._held.apply([change for change in self._changes(self._expert) if change.name not in self._learning])
        self._held.evaluate()

    def _changes(self, expert: Expert) -> list[Change]:
        return changes(self._held.weights, [(Share(self._task, 1.0), expert)])

    def _figure(self, expert: Expert) -> float:
        """Validation of the model with an expert in it."""
        self._held.apply(self._changes(expert))
        self._held.evaluate()
        with torch.no_grad():
            found = self._validate(self._held.module)
        self._held.undo()
        try:
            figure = float(found)
        except (TypeError, ValueError, RuntimeError) as error:  # torch raises the last for tensors of several elements
            raise OptionError(f"validate: expected a number, found {type(found).__name__}") from error
        if not math.isfinite(figure):
            raise OptionError(f"validate: expected a finite number, found {figure}; check its samples and the base")
        return figure

    def _found(self, steps: int) -> _Found:
        """What was learned so far, rounded, and its validation."""
        knobs = {name: refined.fitted() for name, refined in self._refined.items()}
        switches = {
            name: with_fitted(switch, knobs[switch.name]) if name in self._learning else switch
            for name, switch in self._expert.switches.items()
        }
        return _Found(steps, self._figure(replace(self._expert, switches=switches)), knobs)

    def _write(self, before: float, best: _Found, how: str) -> CalibrationResult:
        """Write the file with the best knobs if, read back, they are better, else with those that it had."""
        after, kept = best.figure, False
        with _folder_beside(self._out) as folder:
            made = folder / self._out.name
            if after > before:
                how += f", validation {before!r} -> {after!r}"
                with_knobs(self._path, made, self._task, best.knobs, calibrated_recipe(self._recipe, how))
                after = self._figure(load_expert(self._held.weights, made, self._task, check_base=self._check_base))
                kept = after > before  # validate may be another number each time
            if not kept:
                with_knobs(self._path, made, self._task, {}, self._recipe)
            with SwitchFile(made) as file:
                content_id = file.content_id or ""
            with output_errors(self._out):
                made.replace(self._out)
                sync_folder(self._out.parent)
        return CalibrationResult(self._out, self._task, kept, before, after, best.steps, len(self._refined), content_id)


def _stored(path: Path, task: str) -> tuple[dict[str, FactorDType], Mapping[str, str]]:
    """Stored types of the factors of a task's entries, and its recipe. Raises OptionError for a file of a later version, before
    the work and not after it."""
    container = open_whole(path)
    try:
        number = container.find(task)
        types = {entry.spec.name: entry.factor_dtype for entry in container.entries(number)}
        return types, container.index.tasks[number].recipe
    finally:
        container.close()


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A new folder on the file system of `path`, taken away afterwards with what is in it."""
    folder = path.parent / f".calibrate.{secrets.token_hex(6)}.tmp"
    try:
        with output_errors(path):
            folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
