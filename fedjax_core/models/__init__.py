"""Models as tasks: small ones as plain matrix products, any Flax module by `from_flax`, and transforms that
save memory.

The networks of the field's benchmarks, with their numbers of parameters (a test counts them):

| benchmark | call | parameters |
|---|---|---|
| EMNIST, two layers of 200 | `mlp(features=784, hidden=(200, 200), classes=62)` | 209,662 |
| MNIST, two layers of 200 | `mlp(features=784, hidden=(200, 200), classes=10)` | 199,210 |
| EMNIST, convolutions | `cnn(shape=(28, 28, 1), classes=62)` | 1,206,590 |
| CIFAR-10, convolutions, of pfl | `cnn(shape=(32, 32, 3), classes=10, dropout=(0.25, 0.5))` | 1,626,442 |
| CIFAR-10, ResNet-18 with GroupNorm | `resnet18(classes=10)` | 11,173,962 |
| Shakespeare, characters | `char_lstm(vocabulary=90)` | 820,522 |
| Stack Overflow, words | `word_lstm(vocabulary=10004)` | 4,050,748 |
| Stack Overflow, words | `transformer(vocabulary=10004)` | 1,962,912 |
| a table of 13 columns | `mlp(features=13, hidden=(64, 32), classes=1)` | 3,009 |
"""

from fedjax_core.lora import lora
from fedjax_core.models.base import accuracy, binary_cross_entropy, cross_entropy
from fedjax_core.models.cnn import cnn
from fedjax_core.models.cox import cox
from fedjax_core.models.from_flax import from_flax
from fedjax_core.models.frozen import train_only, whole
from fedjax_core.models.language import char_lstm, transformer, word_lstm
from fedjax_core.models.linear import linear, logistic
from fedjax_core.models.mlp import mlp
from fedjax_core.models.resnet import resnet18
from fedjax_core.models.to_nnx import to_nnx
from fedjax_core.models.transforms import accumulate, bfloat16, remat

__all__ = [
    "accumulate",
    "accuracy",
    "bfloat16",
    "binary_cross_entropy",
    "char_lstm",
    "cnn",
    "cox",
    "cross_entropy",
    "from_flax",
    "linear",
    "logistic",
    "lora",
    "mlp",
    "remat",
    "resnet18",
    "to_nnx",
    "train_only",
    "transformer",
    "whole",
    "word_lstm",
]
