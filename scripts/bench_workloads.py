"""The workloads of the benchmarks: flat arrays with offsets, cohorts, and models as pure functions of JAX.

Sizes are log-normal, with the heavy tail of federated data. Only jax and numpy are imported: the peers run this file in environments of
their own.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Data(NamedTuple):
    """Client i is rows offsets[i]:offsets[i+1]."""

    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Workload:
    """One model on one population; every engine runs FedAvg with local SGD, one epoch, the last short batch kept."""

    title: str
    batch_size: int
    lr: float
    cohort: int
    data: Callable[[], Data]
    init: Callable[[Any], Any]
    logits: Callable[[Any, Any], Any]
    quick: Callable[[Any, Any], Any] | None = None
    """The same function in the form that compiles best in a loop, for the limit."""


def cohorts(workload: Workload, population: int, rounds: int) -> list[np.ndarray]:
    """The clients of each round."""
    rng = np.random.default_rng(1)
    return [rng.choice(population, workload.cohort, replace=False) for _ in range(rounds)]


def losses(logits: Any, y: Any) -> Any:
    """Cross-entropy an example."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]


def _sizes(rng: np.random.Generator, clients: int, mean: float, sigma: float) -> np.ndarray:
    return np.maximum(10, rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, clients).astype(int))


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], sizes.cumsum()])


def _synthetic() -> Data:
    """FedProx's synthetic(1, 1): every client with a labelling and an input mean of its own."""
    rng = np.random.default_rng(0)
    offsets = _offsets(_sizes(rng, 5000, 60, 1.0))
    x, y = np.empty((offsets[-1], 60), np.float32), np.empty(offsets[-1], np.int32)
    spread = np.arange(1, 61) ** -0.6
    for start, stop in itertools.pairwise(offsets):
        shift = rng.normal()
        weights, bias, centre = rng.normal(shift, 1, (60, 10)), rng.normal(shift, 1, 10), rng.normal(rng.normal(), 1, 60)
        x[start:stop] = centre + rng.normal(size=(stop - start, 60)) * spread
        y[start:stop] = (x[start:stop] @ weights + bias).argmax(1)
    return Data(x, y, offsets)


def _noise(shape: tuple[int, ...], classes: int, clients: int, mean: float) -> Callable[[], Data]:
    def data() -> Data:
        rng = np.random.default_rng(0)
        offsets = _offsets(_sizes(rng, clients, mean, 0.6))
        return Data(rng.random((offsets[-1], *shape), np.float32), rng.integers(0, classes, offsets[-1]).astype(np.int32), offsets)

    return data


def _dense(key: Any, inputs: int, outputs: int) -> Any:
    return {"w": jax.random.normal(key, (inputs, outputs)) * inputs**-0.5, "b": jnp.zeros(outputs)}


def _layers(*sizes: int) -> Callable[[Any], Any]:
    def init(key: Any) -> Any:
        return [_dense(jax.random.fold_in(key, i), m, n) for i, (m, n) in enumerate(itertools.pairwise(sizes))]

    return init


def _perceptron(params: Any, x: Any) -> Any:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"][None, :])
    return x @ params[-1]["w"] + params[-1]["b"][None, :]


def _cnn_init(key: Any) -> Any:
    def kernel(i: int, inputs: int, outputs: int) -> Any:
        w = jax.random.normal(jax.random.fold_in(key, i), (3, 3, inputs, outputs)) * (2 / (9 * inputs)) ** 0.5
        return {"w": w, "b": jnp.zeros(outputs)}

    return {"conv": [kernel(0, 1, 32), kernel(1, 32, 64)], "dense": _layers(9216, 128, 62)(key)}


def _convolution(p: Any, x: Any) -> Any:
    return jax.lax.conv_general_dilated(x, p["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + p["b"]


def _patches(p: Any, x: Any) -> Any:
    """The convolution as patches times a matrix."""
    h, w = x.shape[1] - 2, x.shape[2] - 2
    patches = jnp.concatenate([x[:, i : i + h, j : j + w, :] for i in range(3) for j in range(3)], axis=-1)
    return patches @ p["w"].reshape(-1, p["w"].shape[-1]) + p["b"]


def _pool(x: Any) -> Any:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _pool_by_shape(x: Any) -> Any:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def _cnn(convolution: Callable[[Any, Any], Any], pool: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def logits(params: Any, x: Any) -> Any:
        for p in params["conv"]:
            x = jax.nn.relu(convolution(p, x))
        return _perceptron(params["dense"], pool(x).reshape(x.shape[0], -1))

    return logits


WORKLOADS = {
    "synth": Workload("logistic regression 60x10, 1,000 clients a round", 10, 0.01, 1000, _synthetic, _layers(60, 10), _perceptron),
    "mlp": Workload(
        "MLP 784-200-200-10, 200 clients a round", 10, 0.1, 200, _noise((784,), 10, 1000, 60), _layers(784, 200, 200, 10), _perceptron
    ),
    "emnist": Workload(
        "EMNIST CNN, 1.2 M parameters, 50 clients a round",
        20,
        0.1,
        50,
        _noise((28, 28, 1), 62, 200, 100),
        _cnn_init,
        _cnn(_convolution, _pool),
        quick=_cnn(_patches, _pool_by_shape),
    ),
}
