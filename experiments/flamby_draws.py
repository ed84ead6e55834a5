"""The random draws of the published heart runs, without the library that made them: first weights and mini-batch orders from a seed.

The runs drew from a 32-bit Mersenne twister, the same generator as numpy's `RandomState`. A whole number takes two draws, a
weight the low 24 bits of one. A loader gives each epoch a permutation of its own, made by a new generator whose seed the main one drew.
With these orders `heart_disease.py --exact` follows the published runs batch by batch, and so must print their very accuracies.

>>> [f"{weight:.4f}" for weight in first_weights(42, features=13)[:2]]
['0.2120', '0.2302']
"""

from collections.abc import Iterator, Sequence

import numpy as np


def first_weights(seed: int, features: int) -> np.ndarray:
    """[features + 1] float32: a linear layer's weights, then its intercept, uniform in +-1/sqrt(features)."""
    draws = np.random.RandomState(seed).randint(0, 1 << 32, size=features + 1, dtype=np.uint32)
    return ((2 * (draws & 0xFFFFFF) / (1 << 24) - 1) / np.sqrt(features)).astype(np.float32)


def federated_orders(seed: int, sizes: Sequence[int], updates: int, steps: int, batch_size: int) -> np.ndarray:
    """[N, updates, batch_size] local example indices, -1 where a short last batch leaves a slot unused.

    Clients take turns, `steps` updates each a round. Their loaders were made before the seed was set, so a first epoch draws
    the seed of its permutation only; every later epoch draws an unused number before it.
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


def epochs_order(seed: int, size: int, epochs: int, batch_size: int) -> np.ndarray:
    """[1, updates, batch_size] for one client that trains alone, as `federated_orders`."""
    loader = _batches(np.random.RandomState(seed), size, batch_size, made_before=False)
    order = np.full((1, epochs * -(-size // batch_size), batch_size), -1, np.int32)
    for update in order[0]:
        batch = next(loader)
        update[: len(batch)] = batch
    return order


def _batches(stream: np.random.RandomState, size: int, batch_size: int, *, made_before: bool) -> Iterator[np.ndarray]:
    while True:
        if not made_before:
            _integer(stream)
        made_before = False
        order = _permutation(_integer(stream), size)
        for start in range(0, size, batch_size):
            yield order[start : start + batch_size]


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
