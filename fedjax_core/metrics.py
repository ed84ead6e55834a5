"""Metrics that add up: a metric is a sum, or a sum and a weight, until a person reads it.

Lanes, devices, workers and sites then merge by `+`, and a mean of means cannot happen.

>>> import jax.numpy as jnp
>>> one, two = mean(jnp.array([1.0, 1.0]), jnp.ones(2)), mean(jnp.array([4.0]), jnp.ones(1))
>>> float(one + two)
2.0
>>> summary({"loss": one + two, "clients": Sum(jnp.float32(3))})
{'loss': 2.0, 'clients': 3.0}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.types import Array


class _Addable:
    """Leaves add; `sum()` and `float()` work."""

    def __add__(self, other):  # type: ignore[no-untyped-def]
        return jax.tree.map(lambda a, b: a + b, self, other)

    def __radd__(self, other):  # type: ignore[no-untyped-def]
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __float__(self) -> float:
        return float(self.value)  # type: ignore[attr-defined]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean(_Addable):
    """A weighted mean, kept as its two sums."""

    total: Array  # sum of weight * value
    weight: Array  # sum of weight

    @property
    def value(self) -> Array:
        """total / weight; NaN where there was nothing to average."""
        total, weight = jnp.asarray(self.total), jnp.asarray(self.weight)
        return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), jnp.nan)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sum(_Addable):
    """A plain total: counts of clients, examples, bytes."""

    total: Array

    @property
    def value(self) -> Array:
        """The total."""
        return jnp.asarray(self.total)


class Evaluation(NamedTuple):
    """Every metric as a person reads it, {name: value}."""

    pooled: dict[str, float]  # over all examples
    clients: dict[str, np.ndarray]  # [N] float64, over each client's examples; NaN for a client with none
    sizes: np.ndarray  # [N] examples behind each


def mean(values: Array, weight: Array | float = 1.0) -> Mean:
    """The mean of `values` weighted by `weight`, of the same shape or a scalar.

    A value under a weight of 0 does not count, whatever it is: padding may hold anything.
    """
    values = jnp.asarray(values, jnp.float32)
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), values.shape)
    return Mean(jnp.sum(jnp.where(weight > 0, values * weight, 0)), jnp.sum(weight))


def summary(metrics: Mapping[str, Mean | Sum]) -> dict[str, float]:
    """Plain floats to read and log, in one transfer from the device. Stacked rounds must be added first."""
    found = jax.device_get(dict(metrics))  # comes back in alphabetical order
    return {name: float(np.asarray(found[name].value)) for name in metrics}
