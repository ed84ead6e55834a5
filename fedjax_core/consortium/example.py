"""The default study of a consortium in a box: scikit-learn's 569 breast-cancer records, dealt to made-up
hospitals.

>>> found = hospitals(3)
>>> list(found), sum(len(clients.columns["y"]) for clients in found.values())
(['hospital-1', 'hospital-2', 'hospital-3'], 342)
"""

import jax
import optax

from fedjax_core import algorithms, models
from fedjax_core.composition import compose
from fedjax_core.data import partition
from fedjax_core.data.clients import Clients
from fedjax_core.data.datasets import breast_cancer
from fedjax_core.sites.study import Study


def hospitals(count: int, seed: int = 0) -> dict[str, Clients]:
    """The training patients of `count` hospitals, unequal in size and case mix; columns x [n, 30] float32 and
    y [n] int32."""
    pooled = breast_cancer(seed).pooled_train.columns
    parts = partition.dirichlet(pooled["y"], count, alpha=3.0, seed=seed, min_size=10)
    names = [f"hospital-{i}" for i in range(1, count + 1)]
    return {
        name: Clients.from_list([jax.tree.map(lambda x, rows=rows: x[rows], pooled)], ids=[name])
        for name, rows in zip(names, parts, strict=True)
    }


def study(lr: float = 0.05, batch_size: int = 16, epochs: int = 2) -> Study:
    """Logistic regression by FedAvg."""
    algorithm = algorithms.fedavg(models.logistic(features=30, classes=1), local=optax.sgd(lr))
    return Study(compose(algorithm), batch_size=batch_size, epochs=epochs)
