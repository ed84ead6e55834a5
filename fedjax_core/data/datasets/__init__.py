"""Data sets by name; each is a function that returns `Clients`, training and test apart.

>>> from fedjax_core.data.datasets import breast_cancer
>>> breast_cancer().train.sizes.tolist()
[137, 90, 59, 36, 20]
"""

from fedjax_core.data.datasets.breast_cancer import breast_cancer
from fedjax_core.data.datasets.heart_disease import heart_disease

__all__ = ["breast_cancer", "heart_disease"]
