"""Data sets by name; each is a function that returns `Clients`, training and test apart.

Clients by nature have `breast_cancer`, `heart_disease`, `emnist`, `shakespeare`, `cifar100_pachinko`,
`tiny_shakespeare` and `leaf(folder, kind)`; one client, to be dealt out, `fashion_mnist`, `cifar10` and
`cifar100`.

>>> from fedjax_core.data.datasets import breast_cancer
>>> breast_cancer().train.sizes.tolist()
[137, 90, 59, 36, 20]
"""

from fedjax_core.data.datasets.breast_cancer import breast_cancer
from fedjax_core.data.datasets.heart_disease import heart_disease
from fedjax_core.data.datasets.leaf import leaf
from fedjax_core.data.datasets.pooled import cifar10, cifar100, fashion_mnist
from fedjax_core.data.datasets.tff import cifar100_pachinko, emnist, shakespeare
from fedjax_core.data.datasets.tiny_shakespeare import tiny_shakespeare

__all__ = [
    "breast_cancer",
    "cifar10",
    "cifar100",
    "cifar100_pachinko",
    "emnist",
    "fashion_mnist",
    "heart_disease",
    "leaf",
    "shakespeare",
    "tiny_shakespeare",
]
