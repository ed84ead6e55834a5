"""Attacks by data: some clients' examples are changed before training, and they then train honestly.

    label_flip   y -> classes - 1 - y
    backdoor     a share of examples get a trigger, a patch of one value, and the label that the attacker wants

A model with a backdoor is right on clean examples, and gives the attacker's label to examples that
`with_trigger` marks. Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
Chain", 2017; Tolpegin et al., "Data Poisoning Attacks Against Federated Learning Systems", ESORICS 2020.

>>> clients = Clients.from_list([{"x": np.zeros((2, 4)), "y": np.array([0, 2])}] * 2)
>>> label_flip(clients, [1], classes=3).columns["y"].tolist()
[0, 2, 2, 0]
"""

from typing import Any

import numpy as np

from fedjax_core.data.clients import Clients


def label_flip(clients: Clients, liars: Any, classes: int, column: str = "y") -> Clients:
    """The clients, with each label y of those at these positions changed to classes - 1 - y."""
    labels = np.asarray(clients.columns[column])
    rows = _rows(clients, liars)
    return _with(clients, {column: np.where(rows, classes - 1 - labels, labels).astype(labels.dtype)})


def backdoor(
    clients: Clients,
    liars: Any,
    target: int,
    *,
    share: float = 0.5,
    size: int = 3,
    value: float = 1.0,
    seed: int = 0,
) -> Clients:
    """The clients, with the trigger in a `share` of the examples of those at these positions, labelled
    `target`."""
    if not 0 < share <= 1:
        raise ValueError(f"backdoor needs the share of examples with a trigger, 0 < share <= 1, got {share}")
    rows = _rows(clients, liars) & (np.random.default_rng(seed).random(clients.examples) < share)
    x, labels = np.array(clients.columns["x"]), np.asarray(clients.columns["y"])
    x[rows] = with_trigger(x[rows], size, value)
    return _with(clients, {"x": x, "y": np.where(rows, target, labels).astype(labels.dtype)})


def with_trigger(x: np.ndarray, size: int = 3, value: float = 1.0) -> np.ndarray:
    """Examples [n, ...] with a trigger: the last `size` rows and columns of an image, the last `size` of a
    row of features."""
    x = np.array(x)
    if x.ndim >= 3:
        x[:, -size:, -size:] = value
    else:
        x[:, -size:] = value
    return x


def _rows(clients: Clients, liars: Any) -> np.ndarray:
    """[examples] bool: those of the clients at these positions."""
    chosen = np.zeros(len(clients), bool)
    chosen[np.asarray(liars, np.int64)] = True
    return np.repeat(chosen, clients.sizes)


def _with(clients: Clients, columns: dict[str, np.ndarray]) -> Clients:
    return Clients.from_arrays(
        {**clients.columns, **columns}, clients.offsets, clients.ids, features=clients.features
    )
