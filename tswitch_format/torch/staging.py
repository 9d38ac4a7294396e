"""Host arrays -> tensors on a device.

    Staging.send     begin to move some arrays; their tensors, whose content is there after `finish`
    Staging.finish   make the current stream wait for it

On CUDA they go through two pinned buffers: one is filled while the other is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tswitch_format.errors import OptionError

DEFAULT_BYTES = 1 << 26  # of both buffers
_LEAST = 1 << 12
_ALIGNMENT = 16  # bytes, of each array on the device


class Staging:
    """Moves arrays to `device`. `nbytes`: pinned memory for both buffers together; on the CPU none is used.

    `always` uses the buffers, not pinned, on the CPU too: so tests reach them without a GPU. Not thread-safe: hold `lock`
    from the first `send` to `finish` or `abort`.
    """

    def __init__(self, device: torch.device, nbytes: int = DEFAULT_BYTES, *, always: bool = False) -> None:
        if not isinstance(nbytes, int) or nbytes < 2 * _LEAST:
            raise OptionError(f"staging_bytes: expected at least {2 * _LEAST} bytes, found {nbytes!r}")
        self.device = device
        self._cuda = device.type == "cuda"
        self._direct = device.type == "cpu" and not always
        self._half = nbytes // 2
        self._buffers: list[Tensor] = []  # made when they are first needed
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._at = 0  # which buffer is being filled
        self._used = 0  # bytes of it
        self._waiting: list[tuple[Tensor, int, int]] = []  # device bytes, and their span in the buffer
        self.lock = threading.Lock()  # of whoever sends and finishes
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._begun = False

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers as they are."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def send(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """Tensors of the same shapes and dtypes on the device, in one allocation. On the CPU they are the arrays themselves."""
        if self._direct:
            return [torch.from_numpy(array) for array in arrays]
        starts = np.cumsum([0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)])
        whole = torch.empty(int(starts[-1]), dtype=torch.uint8, device=self.device)
        if self._stream is not None:  # it may be memory that kernels on the current stream are not done with yet
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        made = []
        for array, start in zip(arrays, starts, strict=False):
            place = whole[int(start) : int(start) + array.nbytes]
            self._push(np.ascontiguousarray(array).reshape(-1).view(np.uint8), place)
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            made.append(place.view(dtype).view(array.shape))
        return made

    def _push(self, data: NDArray[np.uint8], place: Tensor) -> None:
        """Put bytes into the buffers, sending those that are full."""
        self._begin()
        done = 0
        while done < data.size:
            room = self._half - self._used
            size = min(room, data.size - done)
            buffer = self._buffers[self._at]
            buffer.numpy()[self._used : self._used + size] = data[done : done + size]
            self._waiting.append((place[done : done + size], self._used, self._used + size))
            self._used += size
            done += size
            if self._used == self._half:
                self._flush()

    def _begin(self) -> None:
        if self._begun:
            return
        if not self._buffers:
            self._buffers = [
                torch.empty(self._half, dtype=torch.uint8, device="cpu", pin_memory=self._cuda) for _ in range(2)
            ]
        self._begun = True

    def _flush(self) -> None:
        """Begin to copy the buffer that is being filled, and go on with the other as soon as that has been copied."""
        buffer = self._buffers[self._at]
        with torch.cuda.stream(self._stream):
            for place, first, stop in self._waiting:
                place.copy_(buffer[first:stop], non_blocking=self._cuda)
        self._waiting = []
        if self._stream is not None:
            self._copied[self._at] = self._stream.record_event()
        self._at ^= 1
        self._used = 0
        before = self._copied[self._at]
        if before is not None:
            before.synchronize()

    def finish(self) -> None:
        """Send the rest. Afterwards the current stream sees all content."""
        if self._waiting:
            self._flush()
        if self._stream is not None and self._begun:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        self._begun = False

    def abort(self) -> None:
        """Forget what was not sent, and wait for what was: its memory may be freed now."""
        self._waiting = []
        self._used = 0
        if self._stream is not None:
            self._stream.synchronize()
        self._begun = False
