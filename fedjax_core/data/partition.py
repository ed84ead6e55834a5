"""Partitions one data set among simulated clients; each function returns a list of N int64 index arrays.

Every example goes to exactly one client, because each function decides an owner for every example. A client's
indices ascend.

    iid         alike clients of equal sizes
    dirichlet   label skew: each class is divided among the clients in Dir(alpha) proportions
    shards      label skew: each client has a few runs of the examples sorted by label
    quantity    alike clients of unequal sizes
    by_owner    natural clients: a writer, a patient, a hospital

>>> labels = np.repeat([0, 1, 2], 20)
>>> parts = dirichlet(labels, clients=4, alpha=0.1, seed=0)
>>> sum(len(part) for part in parts), describe(parts, labels).sum(axis=0).tolist()
(60, [20, 20, 20])
>>> found = skew(parts, labels)
>>> found.smallest, found.largest, round(found.classes, 2), round(found.alpha, 2)
(0, 25, 2.33, 0.1)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_core.checks import at_least
from fedjax_core.data import host_random
from fedjax_core.data.given import given

Parts = list[np.ndarray]


class Skew(NamedTuple):
    """Measures of how uneven a partition is in sizes and labels."""

    smallest: int  # examples
    largest: int
    # total variation between a client's labels and all, 0 to 1: the mean over clients that have examples
    distance: float
    classes: float  # how many classes a client has: the mean over clients that have examples
    # alpha of the Dirichlet distribution over clients with draws as uneven on average; infinite for an even
    # partition
    alpha: float


_TRIES = 1000  # redraws for min_size


def iid(n_or_labels: Any, clients: int, seed: int = 0) -> Parts:
    """Alike clients: the examples shuffled and dealt out in turn, so that sizes differ by one at most.

    `n_or_labels` is how many examples there are, or any array with one row an example.
    """
    n = _count(n_or_labels)
    rng = _generator(clients, seed)
    if clients > n:
        raise ValueError(
            f"cannot deal {n} examples to {clients} clients, for some would have none; use at most {n} clients"
        )
    return _group(rng.permutation(np.arange(n) % clients), clients)


def dirichlet(
    labels: Any, clients: int = 100, alpha: float = 0.1, *, seed: int = 0, min_size: int = 0
) -> Parts:
    """Label skew: the examples of each class are divided among the clients in proportions p ~ Dir_N(alpha),
    one draw a class.

    Small alpha: a class belongs to few clients; large alpha: iid. This is the variant of Yurochkin et al.,
    "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, and of Li et al., "Federated
    Learning on Non-IID Data Silos", ICDE 2022, where sizes are skewed as well. (Hsu et al., "Measuring the
    Effects of Non-Identical Data Distribution", 2019, instead draw each client's class mixture from Dir(alpha
    * prior) and keep sizes equal.) Proportions are drawn again, up to 1000 times, until every client has
    `min_size` examples; the cap on large clients in Yurochkin's published code is left out."""
    codes = np.unique(_values("labels", labels), return_inverse=True)[1]
    rng = _generator(clients, seed)
    _check_positive("alpha", alpha)
    classes = [np.flatnonzero(codes == k) for k in range(codes.max() + 1)]

    def draw() -> np.ndarray:
        owner = np.empty(len(codes), np.int64)
        for rows in classes:
            cuts = _cuts(rng.dirichlet(np.full(clients, alpha)), len(rows))
            owner[rng.permutation(rows)] = np.repeat(np.arange(clients), np.diff(cuts))
        return owner

    return _group(_until(draw, len(codes), clients, min_size, "alpha"), clients)


def shards(labels: Any, clients: int, shards_per_client: int = 2, *, seed: int = 0) -> Parts:
    """Label skew: examples sorted by label, cut into clients * shards_per_client equal shards, each client
    given some at random.

    With 2 shards most clients hold two classes. Shard sizes differ by one where they must. McMahan et al.,
    "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, section 3.
    """
    values = _values("labels", labels)
    rng = _generator(clients, seed)
    at_least(1, shards_per_client=shards_per_client)
    total = clients * shards_per_client
    if total > len(values):
        raise ValueError(
            f"{clients} clients with {shards_per_client} shards each need {total} shards, but there are only {len(values)} examples; "
            f"use at most {len(values) // shards_per_client} clients or fewer shards"
        )
    shard_owner = rng.permutation(np.arange(total) % clients)
    owner = np.empty(len(values), np.int64)
    owner[np.argsort(values, kind="stable")] = np.repeat(
        shard_owner, np.diff(np.arange(total + 1) * len(values) // total)
    )
    return _group(owner, clients)


def quantity(
    n_or_labels: Any,
    clients: int,
    *,
    alpha: float | None = None,
    sigma: float | None = None,
    seed: int = 0,
    min_size: int = 0,
) -> Parts:
    """Size skew, labels alike: client sizes in proportions p ~ Dir_N(alpha), or log-normal with this sigma.

    With neither, alpha = 1. Dirichlet sizes as in Li et al., "Federated Learning on Non-IID Data Silos", ICDE
    2022. Proportions are drawn again, up to 1000 times, until every client has `min_size` examples.
    """
    n = _count(n_or_labels)
    rng = _generator(clients, seed)
    if alpha is not None and sigma is not None:
        raise ValueError(
            f"give alpha (Dirichlet sizes) or sigma (log-normal sizes), not both; got alpha={alpha} and sigma={sigma}"
        )
    name, spread = ("alpha", 1.0 if alpha is None else alpha) if sigma is None else ("sigma", sigma)
    _check_positive(name, spread)

    def draw() -> np.ndarray:
        p = rng.dirichlet(np.full(clients, spread)) if sigma is None else rng.lognormal(0, spread, clients)
        return rng.permutation(np.repeat(np.arange(clients), np.diff(_cuts(p / p.sum(), n))))

    return _group(_until(draw, n, clients, min_size, name), clients)


def by_owner(owners: Any) -> Parts:
    """One client for each distinct owner, in the order of `owner_names(owners)`, which serve as the clients'
    ids."""
    names, owner = np.unique(_values("owners", owners), return_inverse=True)
    return _group(owner, len(names))


def owner_names(owners: Any) -> np.ndarray:
    """The distinct owners, sorted: client i of `by_owner(owners)` is owner_names(owners)[i]."""
    return np.unique(_values("owners", owners))


def describe(parts: Sequence[np.ndarray], labels: Any) -> np.ndarray:
    """The number of examples of each class at each client, [N, classes] int64; column k is the k-th distinct
    label, sorted."""
    values, codes = np.unique(_values("labels", labels), return_inverse=True)
    return np.stack([np.bincount(codes[part], minlength=len(values)) for part in parts])


def skew(parts: Sequence[np.ndarray], labels: Any) -> Skew:
    """The realised skew of a partition, whatever alpha asked for: few clients, few examples and `min_size`
    all change it.

    `alpha` solves  mean over classes of sum_i p_i^2 = (alpha + 1) / (N alpha + 1),  the mean of Dir_N(alpha),
    where p_i is client i's share of a class.
    """
    counts = describe(parts, labels).astype(np.float64)
    sizes = counts.sum(axis=1)
    here = counts[sizes > 0]
    distance = (
        np.abs(here / here.sum(axis=1, keepdims=True) - counts.sum(axis=0) / sizes.sum()).sum(axis=1) / 2
    )
    squares = float(np.mean(np.sum((counts / counts.sum(axis=0)) ** 2, axis=0)))
    excess = len(parts) * squares - 1
    alpha = (1 - squares) / excess if excess > 0 else np.inf
    return Skew(
        int(sizes.min()),
        int(sizes.max()),
        float(distance.mean()),
        float((here > 0).sum(axis=1).mean()),
        float(alpha),
    )


def _group(owner: np.ndarray, clients: int) -> Parts:
    """The examples of each owner 0..clients-1."""
    sizes = np.bincount(owner, minlength=clients)
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])


def _cuts(p: np.ndarray, n: int) -> np.ndarray:
    """[len(p) + 1]: where n things in these proportions are cut."""
    return np.concatenate([[0], (np.cumsum(p)[:-1] * n).astype(np.int64), [n]])


def _until(draw: Callable[[], np.ndarray], n: int, clients: int, min_size: int, knob: str) -> np.ndarray:
    """The first owners drawn that leave no client below min_size."""
    at_least(0, min_size=min_size)
    if min_size * clients > n:
        raise ValueError(
            f"min_size={min_size} for {clients} clients needs {min_size * clients} examples, but there are {n}; ask for fewer"
        )
    smallest = 0
    for _ in range(_TRIES):
        owner = draw()
        smallest = max(smallest, int(np.bincount(owner, minlength=clients).min()))
        if smallest >= min_size:
            return owner
    raise ValueError(
        f"in {_TRIES} draws the smallest client had {smallest} examples at best, below min_size={min_size}; "
        f"use {'a larger alpha' if knob == 'alpha' else 'a smaller sigma'}, fewer clients or a smaller min_size"
    )


def _generator(clients: int, seed: int) -> np.random.Generator:
    at_least(1, clients=clients)
    host_random.check_seed(seed)
    return host_random.generator(host_random.PARTITION, seed)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise ValueError(
            f"{name} must be a positive number, got {value!r}; use iid() for clients that are alike"
        )


def _count(n_or_labels: Any) -> int:
    n = int(n_or_labels) if isinstance(n_or_labels, (int, np.integer)) else len(n_or_labels)
    if n < 1:
        raise ValueError(
            f"there are no examples to deal out, got {n_or_labels!r}; give how many there are, or their labels"
        )
    return n


def _values(name: str, values: Any) -> np.ndarray:
    """The values as a one-dimensional array of integers, bools or strings."""
    array = given(values, name) if hasattr(values, "mask") or hasattr(values, "isna") else np.asarray(values)
    if array.dtype == object:  # a text column of a data frame
        array = np.array(array.tolist()) if all(isinstance(v, (str, int)) for v in array.flat) else array
    if array.ndim != 1 or not len(array):
        raise ValueError(
            f"{name} must be a one-dimensional array with one entry an example, got shape {list(array.shape)}"
        )
    if array.dtype.kind not in "biuU":
        raise TypeError(
            f"{name} must be integers, bools or strings, got {array.dtype} ({array[0]!r}, ...); "
            "convert with .astype(np.int64) or .astype(str)"
        )
    return array
