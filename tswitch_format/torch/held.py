"""A model that holds a base, while it is used as something else: what `calibrate` gives back as it got it.

HeldModel    weights, experts applied and undone, weights swapped for others, modes and buffers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tswitch_format.errors import OptionError
from tswitch_format.torch.activation import Activation, Change, Store
from tswitch_format.torch.weights import ModelWeights, changing, raw

_Memory = tuple[object, ...]


class HeldModel:
    """An nn.Module that holds the base, until `restore`. Making it changes nothing.

    `module`: the model without wrappers of torch.compile and of parallel training. Raises OptionError for what is no nn.Module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = ModelWeights(model)
        if not isinstance(self.weights.model, nn.Module):
            raise OptionError(f"model: expected an nn.Module, found a {type(self.weights.model).__name__}")
        self.module: nn.Module = self.weights.model
        modules = list(self.module.modules())
        self._modes = [(module, module.training) for module in modules]
        self._places = [
            (module._parameters, attribute, parameter)
            for module in modules
            for attribute, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._needing = [parameter for _, _, parameter in self._places if parameter.requires_grad]
        self._buffers = [
            (module._buffers, attribute, buffer, buffer.detach().clone())
            for module in modules
            for attribute, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._store = Store()
        self._activation: Activation | None = None  # from before it is made until it is undone

    def hold(self) -> None:
        """No gradients for its parameters, evaluation mode in all of it."""
        for parameter in self._needing:
            parameter.requires_grad_(False)
        self.evaluate()

    def evaluate(self) -> None:
        """Evaluation mode in all of it. One by one, not by `eval`: some modules do more in it, such as merging an adapter."""
        for module, _ in self._modes:
            module.training = False

    @property
    def parameters(self) -> set[str]:
        """Which of the names in `weights` are those of parameters."""
        places = {_memory(parameter) for _, _, parameter in self._places}
        return {name for name in self.weights if _memory(self.weights[name]) in places}

    def apply(self, changes: Sequence[Change]) -> None:
        """Make the model the base with these changes, whatever it was before."""
        self.undo()
        self._activation = Activation(changes, self._store)
        self._activation.make()

    def undo(self) -> None:
        """Make weights and buffers the base's again, whatever ran meanwhile: in training mode norms change their buffers."""
        if self._activation is not None:
            self._activation.undo()
        self._activation = None
        for store, attribute, buffer, _ in self._buffers:
            store[attribute] = buffer
        with changing([buffer for _, _, buffer, _ in self._buffers]):
            for _, _, buffer, kept in self._buffers:
                raw(buffer).copy_(raw(kept))

    def swap(self, weights: Mapping[str, Tensor]) -> None:
        """Put other tensors in the place of parameters, wherever the model has these, tied ones too. By names in
        `self.weights`."""
        others = {_memory(self.weights[name]): tensor for name, tensor in weights.items()}
        for store, attribute, parameter in self._places:
            other = others.get(_memory(parameter))
            if other is not None:
                store[attribute] = other  # type: ignore[assignment]  # as torch.func.functional_call does

    def swap_back(self) -> None:
        """Put the model's own parameters where they were."""
        for store, attribute, parameter in self._places:
            store[attribute] = parameter

    def restore(self) -> None:
        """Give the model back: weights, buffers, modes, which parameters require grad."""
        try:
            self._restore()
        except BaseException:
            self._restore()  # an interrupt may come here as well; all of it can be done again
            raise

    def _restore(self) -> None:
        self.swap_back()
        self.undo()
        for parameter in self._needing:
            parameter.requires_grad_(True)
        for module, mode in self._modes:
            module.training = mode


def _memory(tensor: Tensor) -> _Memory:
    """What two tensors have in common that are the same view of the same memory; of one without elements, itself."""
    where = tensor.data_ptr() if tensor.numel() else id(tensor)
    return tensor.device, where, tensor.shape, tensor.stride(), tensor.dtype
