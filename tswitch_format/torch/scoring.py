"""Importance scores: how much a loss depends on each element that fine-tuning changed. Selective Task Arithmetic, arXiv
2411.16139, whose score is the first-order term of a Taylor expansion; `pack(..., score=...)` keeps the highest.

    importance   expert, loss, batches, base -> scores
    Importance   the scores by name; a checkpoint, so `pack` takes it; `save` writes it with its provenance

With theta the given model's parameters (the expert's), tau = theta - base and L_b the loss of batch b of B, element j has

    score_j = 1/B sum_b |dL_b / dtheta_j * tau_j|      all gradients at theta

Why at theta: the expert is what should stay as it is, and -dL/dtheta_j * tau_j is how its loss would change if j went back to
the base. Why magnitudes batch by batch, as in pruning: training ended where the mean gradient is about zero, so the magnitude
of the mean would be noise, while gradients of single batches still show what the loss depends on.

tau does not depend on the batch, so sums of |dL_b / dtheta_j| are kept, and tau is read at the end, in blocks.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tswitch_format import _layout as lay
from tswitch_format._checksum import sampled_digest
from tswitch_format._version import WRITER
from tswitch_format.checkpoint import CheckpointReader, borrow_checkpoint, create_checkpoint
from tswitch_format.errors import CheckpointError, NonFiniteError, OptionError
from tswitch_format.switch.options import PackOptions
from tswitch_format.switch.pairing import Pair, Pairing, pair_checkpoints
from tswitch_format.switch.scores import METHOD_KEY
from tswitch_format.switch.task_vector import TaskVector
from tswitch_format.torch.checkpoint import TensorCheckpoint, dtype_of_tensor
from tswitch_format.torch.losses import checked_loss
from tswitch_format.torch.weights import ModelWeights

_METHOD = "first-order Taylor"
_FORMULA = "mean over batches of |dL/dtheta * (theta - base)|, at the fine-tuned theta"


def importance(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], loader: Iterable[Any], *, base: Any
) -> Importance:
    """Scores |dL/dtheta * (theta - base)|, the mean over batches, of all parameters of a fine-tuned model (module docstring).

    `model`: the expert, float16, bfloat16, float32 or float64, on one device or several. `loss_fn(model, batch)` gives the loss
    of one item of `loader`, a float tensor of one element; it moves the batch to the device, and may use autocast. `loader`:
    any iterable, gone through once; every batch counts the same whatever its size, so give batches of one size (a mean loss
    of a smaller batch counts for more a sample). Batches of one sample are the finest measure. A constant factor of the loss
    changes no selection: scale the loss up where half-precision gradients would be zero. `base`: a path, a mapping of arrays or
    tensors, or an nn.Module; its tensors pair with the model's by name, as in `pack`.

    Every module is in evaluation mode meanwhile (no dropout, running statistics of batch norms stay), every scored parameter
    requires grad and no parameter has a gradient; modes, requires_grad and gradients are as they were afterwards, whatever
    happens. `loss_fn` must not change the model. Gradients become f32 before they are added up.

    Has scores: each parameter that may become a switch, that is, pairs with a float tensor of the base with the same shape;
    tied ones once, under the name that `pack` gives them with this base. A parameter that no batch's loss reached has the score
    0 everywhere; `Importance.unreached` names them, and a warning where fine-tuning changed one. Buffers have no gradient and
    no scores: `pack` selects them by magnitude.

    Memory: the model, its gradients, one f32 tensor for each parameter on its device (at the end the scores on the CPU), beside
    what `loss_fn` takes; the base is read in blocks of at most 2^20 elements.

    Raises OptionError (model, loss or loader are not as above, or all scores would be 0), CheckpointError (the base does not
    fit or cannot be read) or NonFiniteError (a gradient or a difference that is not finite, by tensor and batch, from 0).
    """
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"model: expected the fine-tuned nn.Module, found {type(model).__name__}; gradients need a model"
        )
    weights = ModelWeights(model)
    _check_parameters(weights)
    with borrow_checkpoint(base) as reader:
        pairing = pair_checkpoints(reader, weights.reader, PackOptions.of(on_mismatch="dense"))
        pairs = _scored(pairing, reader, weights)
        leaves = {pair.tuned_stored: weights.views(pair.tuned_stored) for pair in pairs}
        state = _State(model)
        try:
            state.prepare(tensor for views in leaves.values() for tensor in views)
            # The caller's block may be one of inference, in which there are no gradients.
            with torch.inference_mode(False), torch.enable_grad():
                sums, batches = _accumulated(model, loss_fn, loader, leaves)
        finally:
            state.put_back()
        return _scores(model, pairing, pairs, reader, weights, sums, batches)


class Importance(TensorCheckpoint, Mapping[str, Tensor]):
    """Scores by name: f32 tensors on the CPU, of the parameters' shapes, finite and never negative. Made by `importance`.

    It is a checkpoint as well, which `pack(..., score=...)` takes as it is. `metadata` says how the scores were made:
    `score_method`, `score_formula`, `score_batches`, `score_base` (what the base is called), `score_base_digests` (JSON: the
    base's sampled digest of each tensor, spec section 11.2), `score_unreached` (JSON, where there are any) and `writer`.
    `unreached`: names of parameters that the loss never reached.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        *,
        location: str,
        paths: Sequence[Path],
        aliases: Mapping[str, str],
        metadata: Mapping[str, str],
        unreached: Sequence[str],
    ) -> None:
        super().__init__(scores, location=location, paths=paths)
        self.aliases = dict(aliases)
        self.metadata = metadata
        self.unreached = tuple(unreached)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def save(self, path: str | PathLike[str], *, note: str | None = None) -> None:
        """Write the scores to a .safetensors file, whole or not at all, with `metadata` and a free `note` as its metadata.

        Raises OutputError or CheckpointError where that cannot be, also where `path` is the base's; OptionError for a note that
        is no string.
        """
        if note is not None and not isinstance(note, str):
            raise OptionError(f"note: expected a string, found {type(note).__name__}; write it as one")
        metadata = {**self.metadata, **({} if note is None else {"note": note})}
        writer = create_checkpoint(Path(path), like=self, specs=list(self.specs.values()), metadata=metadata)
        try:
            for name, tensor in self.items():
                writer.write_from(name, 0, tensor.numpy().reshape(-1).view(np.uint8))
            writer.commit()
        finally:
            writer.abort()


class _State:
    """Modes, requires_grad and gradients of a model, to be put back as they were.

    Modes are set one by one, not by `eval` and `train`: these set all below a module, and some modules do more in them, such
    as merging an adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._parameters = [(tensor, tensor.requires_grad, tensor.grad) for tensor in model.parameters()]

    def prepare(self, wanted: Iterable[Tensor]) -> None:
        """Evaluation mode, no gradients, and these parameters require grad."""
        for module, _ in self._modes:
            module.training = False
        for tensor, _, _ in self._parameters:
            tensor.grad = None  # so that a backward in loss_fn adds nothing to the caller's
        for leaf in wanted:
            leaf.requires_grad_(True)

    def put_back(self) -> None:
        """All as it was."""
        for tensor, requires_grad, gradient in self._parameters:
            tensor.requires_grad_(requires_grad)
            tensor.grad = gradient
        for module, training in self._modes:
            module.training = training


def _check_parameters(weights: ModelWeights) -> None:
    """Raise OptionError for parameters that have no gradient."""
    for name in weights:
        for tensor in weights.views(name):
            if not isinstance(tensor, nn.Parameter):
                continue
            where = f"{weights.reader.location}: parameter {name!r}"
            dtype = dtype_of_tensor(tensor)
            if dtype is None or not dtype.is_float:
                raise OptionError(
                    f"{where}: expected float16, bfloat16, float32 or float64, found {_name(tensor.dtype)}; load the model "
                    "without quantisation"
                )
            if tensor.is_inference():
                raise OptionError(
                    f"{where}: expected one that can require grad, found an inference tensor; load the model outside of "
                    "torch.inference_mode"
                )


def _scored(pairing: Pairing, reader: CheckpointReader, weights: ModelWeights) -> list[Pair]:
    """The pairs of parameters that may become switches. Raises CheckpointError where there are none."""
    parameters = {name for name in weights if any(isinstance(tensor, nn.Parameter) for tensor in weights.views(name))}
    pairs = [pair for pair in pairing.pairs if pair.kind is lay.Kind.TERNARY and pair.tuned_stored in parameters]
    if not pairs:
        raise CheckpointError(
            f"{reader.location}: expected float tensors with names and shapes of parameters of {weights.reader.location}, such "
            f"as {min(parameters, default='none')!r}, found none among {len(reader.specs)}, such as "
            f"{min(reader.specs, default='none')!r}; give the base that the model was fine-tuned from, under the model's names"
        )
    return pairs


def _accumulated(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    loader: Iterable[Any],
    leaves: Mapping[str, Sequence[Tensor]],
) -> tuple[dict[str, Tensor], int]:
    """Sums over batches of the gradients' magnitudes, in f32 and of reached parameters only, and the number of batches.

    `leaves`: by name, the tensors that are one parameter, whose gradients add up.
    """
    every = [tensor for views in leaves.values() for tensor in views]
    sums: dict[str, Tensor] = {}
    batches = 0
    for batch in loader:
        where = f"loss_fn: batch {batches}"
        loss = checked_loss(loss_fn(model, batch), where=where, advice="leave that batch out")
        # Unlike backward, it leaves the parameters' own gradients alone.
        gradients = iter(torch.autograd.grad(loss, every, allow_unused=True))
        for name, views in leaves.items():
            found = [_wide(gradient) for gradient in islice(gradients, len(views)) if gradient is not None]
            if not found:
                continue
            magnitudes = reduce(torch.add, found).abs()
            largest = float(magnitudes.max()) if magnitudes.numel() else 0.0  # NaN comes through max
            if not math.isfinite(largest):
                raise NonFiniteError(
                    f"{type(model).__name__}: tensor {name!r}: expected finite gradients of the loss, found NaN or infinity in "
                    f"batch {batches}; leave that batch out, scale the loss down, or compute it in float32",
                    tensor=name,
                )
            sums[name] = sums[name].add_(magnitudes) if name in sums else magnitudes
        batches += 1
    if not batches:
        raise OptionError(
            "loader: expected at least one batch, found none; an iterator that was gone through already is empty"
        )
    return sums, batches


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _wide(gradient: Tensor) -> Tensor:
    """A gradient as dense f32."""
    return (gradient if gradient.layout is torch.strided else gradient.to_dense()).to(torch.float32)


def _scores(
    model: nn.Module,
    pairing: Pairing,
    pairs: Sequence[Pair],
    reader: CheckpointReader,
    weights: ModelWeights,
    sums: dict[str, Tensor],
    batches: int,
) -> Importance:
    """Mean magnitudes times |tau|, in the order of the pairs; `sums` are let go of one by one."""
    scores: dict[str, Tensor] = {}
    unreached: list[str] = []
    changed: list[str] = []
    last = {pair.tuned_stored: pair.name for pair in pairs}  # what the base does not tie shares the model's gradients
    for pair in pairs:
        stored = pair.tuned_stored
        total = sums.pop(stored, None) if last[stored] == pair.name else sums.get(stored)
        score = torch.zeros(pair.base.shape if pair.base else ())
        differs = _fill(score.numpy().reshape(-1), total, batches, TaskVector(pair, reader, weights.reader))
        if total is None:
            unreached.append(pair.name)
            if differs:
                changed.append(pair.name)
        scores[pair.name] = score
    if not any(bool(score.any()) for score in scores.values()):
        raise OptionError(
            f"{reader.location}: expected a difference from {weights.reader.location} that the loss depends on, found none in "
            f"{len(pairs)} tensors: all scores would be 0; give the base that the model was fine-tuned from"
        )
    if changed:
        warnings.warn(
            f"the loss reached none of {len(changed)} changed tensors, such as {changed[0]!r}: their scores are 0, so none of "
            "their elements will stay; pack them whole with --dense, or give a loss that depends on them",
            stacklevel=3,
        )
    digests = {pair.name: _digest(reader, pair.base_stored) for pair in pairs}
    metadata = {
        METHOD_KEY: _METHOD,
        "score_formula": _FORMULA,
        "score_batches": str(batches),
        "score_base": Path(reader.location).name,
        "score_base_digests": json.dumps(digests),
        **({"score_unreached": json.dumps(unreached)} if unreached else {}),
        "writer": WRITER,
    }
    return Importance(
        scores,
        location=f"the importance scores of {type(model).__name__}",
        paths=reader.paths,
        aliases={alias: target for alias, target in pairing.aliases.items() if target in scores},
        metadata=metadata,
        unreached=unreached,
    )


def _fill(score: NDArray[np.float32], total: Tensor | None, batches: int, vector: TaskVector) -> bool:
    """Write the scores of one tensor, flat; whether it differs from the base's. Raises NonFiniteError."""
    flat = None if total is None else total.cpu().contiguous().reshape(-1).numpy()
    count = np.float32(batches)
    start, differs = 0, False
    for _, magnitudes in vector.blocks():  # of tau: f32, or f64 where the base is, rounded in the product
        differs = differs or bool(magnitudes.any())
        part = slice(start, start + magnitudes.size)
        start = part.stop
        if flat is None:
            continue
        with np.errstate(over="ignore", under="ignore"):  # found just below
            np.multiply(flat[part] / count, magnitudes, out=score[part], casting="same_kind")
        if not np.isfinite(score[part]).all():
            raise NonFiniteError(
                f"tensor {vector.name!r}: expected scores within the range of float32, found larger ones among elements "
                f"{part.start} to {part.stop}; scale the loss down",
                tensor=vector.name,
            )
    return differs


def _digest(reader: CheckpointReader, stored: str) -> str:
    return sampled_digest(reader.specs[stored].nbytes, lambda at, out: reader.read_into(stored, at, out)).hex()
