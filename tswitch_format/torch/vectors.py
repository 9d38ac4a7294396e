"""Shared vectors on devices: what masked switches select from. One copy of each on a device, as long as anybody holds it.

What is shared is known by its SHA-256, so experts of several files, and of several banks, share too. The digest is computed
before a vector is given to others: a file that lies of its vector would otherwise put it into the experts of other files.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tswitch_format._parallel import ordered_map
from tswitch_format.container.reader import SharedArray
from tswitch_format.switch.tensor import Switch
from tswitch_format.torch.checkpoint import torch_dtype
from tswitch_format.torch.staging import Staging

_Key = tuple[bytes, str, torch.device]

_held: WeakValueDictionary[_Key, Tensor] = WeakValueDictionary()
_lock = (
    threading.Lock()
)  # also while vectors are read: two threads would otherwise read one twice, into twice the memory


def load_vectors(switches: Sequence[Switch], staging: Staging, threads: int) -> dict[str, Tensor]:
    """The vectors of whole masked switches by the switches' names, flat, on the device of `staging`, whose lock is held.

    Their content is there when this returns. Slices are left out: they get vectors of their own (`send_vector`). Raises
    FormatError for a damaged vector, or one that has not the digest that the file says.
    """
    wanted = {switch.name: switch.entry.vector for switch in switches if switch.kind == "masked" and switch.is_whole}
    if not wanted:
        return {}
    with _lock:
        keys = {name: _key(array, staging.device) for name, array in wanted.items()}
        found: dict[_Key, Tensor] = {}
        missing: dict[_Key, SharedArray] = {}
        for name, key in keys.items():
            tensor = _held.get(key)
            if tensor is None:
                missing[key] = wanted[name]
            else:
                found[key] = tensor
                if tensor.is_cuda:  # others may let go of it while this stream still reads
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))
        made = dict(zip(missing, _read(missing.values(), staging, threads), strict=True))
        if made:
            staging.finish()
            if staging.device.type == "cuda":  # other threads may use it on other streams
                torch.cuda.current_stream(staging.device).synchronize()
            _held.update(made)
        return {name: (found | made)[key] for name, key in keys.items()}


def send_vector(elements: NDArray[np.generic], switch: Switch, staging: Staging) -> Tensor:
    """Elements of the vector of a masked switch, in storage dtype, as a flat tensor on the device of `staging`."""
    (sent,) = staging.send([elements.reshape(-1)])
    return sent.view(torch_dtype(switch.entry.vector.dtype))


def _key(array: SharedArray, device: torch.device) -> _Key:
    return array.sha256 or b"", array.dtype.name, device


def _read(arrays: Iterable[SharedArray], staging: Staging, threads: int) -> Iterator[Tensor]:
    """Each of these on the device. Threads decode, a chunk each at a time."""
    units = ((array, chunk) for array in arrays for chunk in range(max(array.chunks, 1)))
    for array, parts in itertools.groupby(ordered_map(_decode, units, threads), key=lambda part: part[0]):
        whole = np.empty(array.spec.elements, array.dtype.storage)
        raw, digest, end = whole.view(np.uint8), array.digest(), 0
        for _, data in parts:
            raw[end : end + data.size] = data
            digest.update(raw[end : end + data.size])
            end += data.size
        if digest.digest() != array.sha256:
            raise array.other_content(digest.digest())
        (sent,) = staging.send([whole])
        yield sent.view(torch_dtype(array.dtype))


def _decode(unit: tuple[SharedArray, int]) -> tuple[SharedArray, NDArray[np.uint8]]:
    array, chunk = unit
    return array, array.data(chunk) if array.chunks else np.empty(0, np.uint8)
