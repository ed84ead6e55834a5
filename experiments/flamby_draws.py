"""The random draws of the published heart and survival runs, without their library: first weights and
mini-batch orders of a seed.

The runs drew from a 32-bit Mersenne twister, the same generator as numpy's `RandomState`. A whole number
takes two draws, a weight the low 24 bits of one. A loader gives each epoch a permutation of its own, made by
a new generator whose seed the main one drew. With these orders `heart_disease.py --exact` and `tcga_brca.py`
follow the published runs batch by batch, and so must print their numbers.

>>> [f"{weight:.4f}" for weight in first_weights(42, features=13)[:2]]
['0.2120', '0.2302']
"""

from collections.abc import Iterator, Sequence

import numpy as np


def first_weights(seed: int, features: int) -> np.ndarray:
    """[features + 1] float32: a linear layer's weights, then its intercept, uniform in +-1/sqrt(features)."""
    draws = np.random.RandomState(seed).randint(0, 1 << 32, size=features + 1, dtype=np.uint32)
    return ((2 * (draws & 0xFFFFFF) / (1 << 24) - 1) / np.sqrt(features)).astype(np.float32)


def federated_orders(
    seed: int, sizes: Sequence[int], updates: int, steps: int, batch_size: int
) -> np.ndarray:
    """[N, updates, batch_size] local example indices, -1 where a short last batch leaves a slot unused.

    Clients take turns, `steps` updates each a round. Their loaders were made before the seed was set, so a
    first epoch draws the seed of its permutation only; every later epoch draws an unused number before it.
    """
    stream = np.random.RandomState(seed)
    loaders = [_batches(stream, size, batch_size, made_before=True) for size in sizes]
    orders = np.full((len(sizes), updates, batch_size), -1, np.int32)
    for start in range(0, updates, steps):
        for order, loader in zip(orders, loaders, strict=True):
            for update in range(start, start + steps):
                batch = next(loader)
                order[update, : len(batch)] = batch
    return orders


def survival_orders(
    seed: int, sizes: Sequence[int], rounds: int, steps: int, batch_size: int, epochs: int
) -> dict[str, tuple[np.ndarray, list[int]]]:
    """{method: ([N, rounds * steps, batch_size] as `federated_orders`, rounds that each client worked)}, of
    the survival runs.

    Their loaders drew both numbers of an epoch when it began, and those of the first epochs before the seed
    was set: from where the method before had left the generator, after the last region's local training and
    an evaluation of N + 1 test sets."""
    clients, found = len(sizes), {}
    stream = np.random.RandomState(seed)
    _draw(stream, 2 * epochs + clients + 1)
    for name in ("Cyclic", "FedAdagrad", "FedAdam", "FedAvg", "FedProx", "FedYogi", "Scaffold"):
        firsts = [_permutation(_draw(stream, 2), size) for size in sizes]
        stream = np.random.RandomState(seed)
        loaders = [_from(stream, first, size, batch_size) for first, size in zip(firsts, sizes, strict=True)]
        turns = _turns(seed, clients, rounds) if name == "Cyclic" else [list(range(clients))] * rounds
        orders, worked = np.full((clients, rounds * steps, batch_size), -1, np.int32), [0] * clients
        for client in (client for turn in turns for client in turn):
            for update in range(worked[client] * steps, (worked[client] + 1) * steps):
                batch = next(loaders[client])
                orders[client, update, : len(batch)] = batch
            worked[client] += 1
        found[name] = orders, worked
        _draw(stream, clients + 1)
    return found


def cyclic_order(
    seed: int, sizes: Sequence[int], rounds: int, steps: int, batch_size: int
) -> tuple[np.ndarray, list[int]]:
    """The heart runs' "Cyclic", one client a round: ([N, rounds * steps, batch_size], rounds that each client
    worked)."""
    stream = np.random.RandomState(seed)
    loaders = [_batches(stream, size, batch_size, made_before=True) for size in sizes]
    orders, worked = np.full((len(sizes), rounds * steps, batch_size), -1, np.int32), [0] * len(sizes)
    for (client,) in _turns(seed, len(sizes), rounds):
        for update in range(worked[client] * steps, (worked[client] + 1) * steps):
            batch = next(loaders[client])
            orders[client, update, : len(batch)] = batch
        worked[client] += 1
    return orders, worked


def _turns(seed: int, clients: int, rounds: int) -> list[list[int]]:
    """Of each round the one client whose turn it is: a permutation of all, and then another."""
    draw, order = np.random.default_rng(seed), []
    while len(order) < rounds:
        order += draw.permutation(clients).tolist()
    return [[client] for client in order[:rounds]]


def epochs_order(seed: int, size: int, epochs: int, batch_size: int) -> np.ndarray:
    """[1, updates, batch_size] for one client that trains alone, as `federated_orders`."""
    loader = _batches(np.random.RandomState(seed), size, batch_size, made_before=False)
    order = np.full((1, epochs * -(-size // batch_size), batch_size), -1, np.int32)
    for update in order[0]:
        batch = next(loader)
        update[: len(batch)] = batch
    return order


def _batches(
    stream: np.random.RandomState, size: int, batch_size: int, *, made_before: bool
) -> Iterator[np.ndarray]:
    while True:
        if not made_before:
            _integer(stream)
        made_before = False
        order = _permutation(_integer(stream), size)
        for start in range(0, size, batch_size):
            yield order[start : start + batch_size]


def _from(
    stream: np.random.RandomState, order: np.ndarray, size: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Batches of a first epoch in this order, then of epochs whose two numbers are drawn when each begins."""
    for start in range(0, size, batch_size):
        yield order[start : start + batch_size]
    yield from _batches(stream, size, batch_size, made_before=False)


def _draw(stream: np.random.RandomState, times: int) -> int:
    """The last of so many whole numbers."""
    return [_integer(stream) for _ in range(times)][-1]


def _integer(stream: np.random.RandomState) -> int:
    high, low = (int(draw) for draw in stream.randint(0, 1 << 32, size=2, dtype=np.uint32))
    return ((high << 32) | low) % (1 << 63)


def _permutation(seed: int, size: int) -> np.ndarray:
    draws = np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 1 << 32, size=size, dtype=np.uint32)
    order = np.arange(size)
    for i in range(size - 1):
        j = i + int(draws[i]) % (size - i)
        order[i], order[j] = order[j], order[i]
    return order
