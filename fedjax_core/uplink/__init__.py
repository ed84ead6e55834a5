"""The uplink of a report: stages with a client's half and a server's half, joined by `chain`."""

from fedjax_core.uplink.base import (
    Info,
    Promises,
    Sender,
    Stage,
    bits,
    chain,
    message_shapes,
    roundtrip,
    stage,
)
from fedjax_core.uplink.clip import clip
from fedjax_core.uplink.count_sketch import count_sketch
from fedjax_core.uplink.delta import Delta, delta
from fedjax_core.uplink.drive import drive
from fedjax_core.uplink.eden import eden
from fedjax_core.uplink.ef21 import ef21
from fedjax_core.uplink.feedback import feedback
from fedjax_core.uplink.half import half
from fedjax_core.uplink.k_level import k_level
from fedjax_core.uplink.low_rank import low_rank, powersgd
from fedjax_core.uplink.qsgd import qsgd
from fedjax_core.uplink.quantize import quantize
from fedjax_core.uplink.randk import randk
from fedjax_core.uplink.rotation import rotated
from fedjax_core.uplink.secure import secure
from fedjax_core.uplink.sign import sign
from fedjax_core.uplink.terngrad import terngrad
from fedjax_core.uplink.topk import topk

__all__ = [
    "Delta",
    "Info",
    "Promises",
    "Sender",
    "Stage",
    "bits",
    "chain",
    "clip",
    "count_sketch",
    "delta",
    "drive",
    "eden",
    "ef21",
    "feedback",
    "half",
    "k_level",
    "low_rank",
    "message_shapes",
    "powersgd",
    "qsgd",
    "quantize",
    "randk",
    "rotated",
    "roundtrip",
    "secure",
    "sign",
    "stage",
    "terngrad",
    "topk",
]
