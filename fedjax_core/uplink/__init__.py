"""What happens to a report on its way up: stages with a client's half and a server's half, joined by `chain`."""

from fedjax_core.uplink.base import Info, Promises, Sender, Stage, chain, message_shapes, roundtrip, stage
from fedjax_core.uplink.clip import clip
from fedjax_core.uplink.feedback import feedback
from fedjax_core.uplink.half import half
from fedjax_core.uplink.quantize import quantize
from fedjax_core.uplink.secure import secure

__all__ = [
    "Info",
    "Promises",
    "Sender",
    "Stage",
    "chain",
    "clip",
    "feedback",
    "half",
    "message_shapes",
    "quantize",
    "roundtrip",
    "secure",
    "stage",
]
