"""One batch in which each row uses another expert, from packed planes, without the experts' weights (spec section 10).

    routing.py     Routing: which task, and coefficient, each row of a batch uses; its rows by group, its tiles for kernels
    planes.py      TaskPlanes: the switches of one matrix, task by task, 2 bits an element, as products read them
    linear.py      mixed_linear, add_delta_, SwitchLinear: y = x W^T + b + knob * (r . ((x . c) S^T)), S = sign . mask
    embedding.py   add_rows_: looked-up rows of a changed table
    model.py       MixedModel, forward_mixed: a whole model
    modules.py     what stands in for the forward of each changed module meanwhile
    grouped.py     modules that are run once a task: arguments cut by rows, outputs put together
    guard.py       finds a model that uses a changed parameter past its module
    reference.py   the products in plain torch, on any device
    fused.py       the same in Triton, on CUDA
    compiled.py    the same in loops that numba compiles, on the CPU

Inference only: no gradients.
"""

from __future__ import annotations

from tswitch_format.torch.mixed.linear import SwitchLinear, mixed_linear
from tswitch_format.torch.mixed.model import MixedModel, forward_mixed
from tswitch_format.torch.mixed.planes import TaskPlanes
from tswitch_format.torch.mixed.routing import Routing

__all__ = ["MixedModel", "Routing", "SwitchLinear", "TaskPlanes", "forward_mixed", "mixed_linear"]
