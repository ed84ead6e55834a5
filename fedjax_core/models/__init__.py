"""Models as tasks: small ones as plain matrix products, and any Flax module by `from_flax`; and what makes them fit."""

from fedjax_core.lora import lora
from fedjax_core.models.base import accuracy, binary_cross_entropy, cross_entropy
from fedjax_core.models.cnn import cnn
from fedjax_core.models.cox import cox
from fedjax_core.models.from_flax import from_flax
from fedjax_core.models.frozen import train_only, whole
from fedjax_core.models.linear import linear, logistic
from fedjax_core.models.mlp import mlp
from fedjax_core.models.to_nnx import to_nnx
from fedjax_core.models.transforms import accumulate, bfloat16, remat

__all__ = [
    "accumulate",
    "accuracy",
    "bfloat16",
    "binary_cross_entropy",
    "cnn",
    "cox",
    "cross_entropy",
    "from_flax",
    "linear",
    "logistic",
    "lora",
    "mlp",
    "remat",
    "to_nnx",
    "train_only",
    "whole",
]
