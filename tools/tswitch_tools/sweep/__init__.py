"""What each way of keeping experts costs and keeps, on a user's own model: `tsw_sweep`.

    from tswitch_tools.sweep import tsw_sweep
    table = tsw_sweep("base.safetensors", {"math": "math.safetensors"}, evaluate, validate=validate)
    print(table.markdown())

    running     tsw_sweep: makes the files, reads them back, times and evaluates
    method      what a method is, and what it is given: Method, Kept, Job
    packed      .tsw files, and whole experts to compare with
    together    experts that share something: merged models, TALL-masks, EMR
    low_rank    what one would do without TSW: a singular value decomposition of what fine-tuning changed
    defaults    the methods that are compared if nobody says which
    table       rows and their summary, as Markdown and JSON; picture, as a plot (extra `plots`)
    tensors     checkpoints <-> torch tensors

Needs torch, so nothing else in the tools imports it.
"""

from tswitch_tools.sweep.defaults import default_methods
from tswitch_tools.sweep.low_rank import LowRank
from tswitch_tools.sweep.method import Evaluate, Job, Kept, Method
from tswitch_tools.sweep.packed import Packed, Whole
from tswitch_tools.sweep.running import tsw_sweep
from tswitch_tools.sweep.table import Failure, Row, SummaryRow, SweepTable
from tswitch_tools.sweep.together import Consensus, Emr, Sum, Tall, Ties

__all__ = [
    "Consensus",
    "Emr",
    "Evaluate",
    "Failure",
    "Job",
    "Kept",
    "LowRank",
    "Method",
    "Packed",
    "Row",
    "Sum",
    "SummaryRow",
    "SweepTable",
    "Tall",
    "Ties",
    "Whole",
    "default_methods",
    "tsw_sweep",
]
