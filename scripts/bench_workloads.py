"""The workloads of the benchmarks: flat arrays with offsets, cohorts, and models as pure functions of JAX.

Sizes are log-normal, with the heavy tail of federated data. A character model has a character at each place
of `x` and the next one at the same place of `y`. Only jax and numpy are imported: the peers run this file in
environments of their own."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CHARACTERS = 90  # Shakespeare's 86, and the four signs for padding, beginning, end and anything else


class Data(NamedTuple):
    """Client i is rows offsets[i]:offsets[i+1]."""

    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Workload:
    """One model on one population; every engine runs FedAvg with local SGD, one epoch, the last short batch
    kept."""

    title: str
    batch_size: int
    lr: float
    cohort: int
    data: Callable[[], Data]
    init: Callable[[Any], Any]
    logits: Callable[[Any, Any], Any]
    quick: Callable[[Any, Any], Any] | None = None
    """The same function in the form that compiles best in a loop, for the limit."""


def cohorts(size: int, population: int, seed: int = 1) -> Iterator[np.ndarray]:
    """The clients of one round after another, always the same."""
    rng = np.random.default_rng(seed)
    while True:
        yield rng.choice(population, size, replace=False)


def losses(logits: Any, y: Any) -> Any:
    """Cross-entropy an example, [B]: logits [B, C] and y [B], or logits [B, T, C] and y [B, T], of which it
    is the mean over T."""
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1)[..., 0]
    return each.reshape(each.shape[0], -1).mean(1)


def _sizes(rng: np.random.Generator, clients: int, mean: float, sigma: float, least: int = 10) -> np.ndarray:
    return np.maximum(least, rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, clients).astype(int))


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
        weights, bias, centre = (
            rng.normal(shift, 1, (60, 10)),
            rng.normal(shift, 1, 10),
            rng.normal(rng.normal(), 1, 60),
        )
        x[start:stop] = centre + rng.normal(size=(stop - start, 60)) * spread
        y[start:stop] = (x[start:stop] @ weights + bias).argmax(1)
    return Data(x, y, offsets)


def noise(shape: tuple[int, ...], classes: int, clients: int, mean: float) -> Callable[[], Data]:
    """Random inputs of this shape with random labels: time does not depend on what is learnt."""

    def data() -> Data:
        rng = np.random.default_rng(0)
        offsets = _offsets(_sizes(rng, clients, mean, 0.6))
        return Data(
            rng.random((offsets[-1], *shape), np.float32),
            rng.integers(0, classes, offsets[-1]).astype(np.int32),
            offsets,
        )

    return data


def _characters(length: int, clients: int, mean: float) -> Callable[[], Data]:
    def data() -> Data:
        rng = np.random.default_rng(0)
        offsets = _offsets(_sizes(rng, clients, mean, 0.6, least=2))
        text = rng.integers(0, CHARACTERS, (offsets[-1], length + 1)).astype(np.int32)
        return Data(text[:, :-1].copy(), text[:, 1:].copy(), offsets)

    return data


def _dense(key: Any, inputs: int, outputs: int) -> Any:
    return {"w": jax.random.normal(key, (inputs, outputs)) * inputs**-0.5, "b": jnp.zeros(outputs)}


def layers(*sizes: int) -> Callable[[Any], Any]:
    """The init of a perceptron with layers of these sizes."""

    def init(key: Any) -> Any:
        return [
            _dense(jax.random.fold_in(key, i), m, n) for i, (m, n) in enumerate(itertools.pairwise(sizes))
        ]

    return init


def perceptron(params: Any, x: Any) -> Any:
    """Its logits."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"][None, :])
    return x @ params[-1]["w"] + params[-1]["b"][None, :]


def _cnn_init(key: Any) -> Any:
    def kernel(i: int, inputs: int, outputs: int) -> Any:
        w = jax.random.normal(jax.random.fold_in(key, i), (3, 3, inputs, outputs)) * (2 / (9 * inputs)) ** 0.5
        return {"w": w, "b": jnp.zeros(outputs)}

    return {"conv": [kernel(0, 1, 32), kernel(1, 32, 64)], "dense": layers(9216, 128, 62)(key)}


def _convolution(p: Any, x: Any) -> Any:
    return (
        jax.lax.conv_general_dilated(x, p["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        + p["b"][None, None, None]
    )


def _patches(p: Any, x: Any) -> Any:
    """The convolution as patches times a matrix."""
    h, w = x.shape[1] - 2, x.shape[2] - 2
    patches = jnp.concatenate([x[:, i : i + h, j : j + w, :] for i in range(3) for j in range(3)], axis=-1)
    return patches @ p["w"].reshape(-1, p["w"].shape[-1]) + p["b"][None, None, None]


def _pool(x: Any) -> Any:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _pool_by_shape(x: Any) -> Any:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def _cnn(convolution: Callable[[Any, Any], Any], pool: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def logits(params: Any, x: Any) -> Any:
        for p in params["conv"]:
            x = jax.nn.relu(convolution(p, x))
        return perceptron(params["dense"], pool(x).reshape(x.shape[0], -1))

    return logits


def _lstm_init(embedding: int, hidden: int, layers: int) -> Callable[[Any], Any]:
    def init(key: Any) -> Any:
        first, last, *inner = jax.random.split(key, 2 + layers)
        return {
            "embedding": jax.random.normal(first, (CHARACTERS, embedding)) * embedding**-0.5,
            "cells": [
                _dense(k, (hidden if i else embedding) + hidden, 4 * hidden) for i, k in enumerate(inner)
            ],
            "out": _dense(last, hidden, CHARACTERS),
        }

    return init


def _lstm(params: Any, x: Any) -> Any:
    """Logits [B, T, C] of LSTM layers one above another."""
    h = params["embedding"][x].swapaxes(0, 1)  # [T, B, embedding]
    for cell in params["cells"]:
        h = _lstm_layer(cell, h)
    return (h @ params["out"]["w"] + params["out"]["b"][None, None]).swapaxes(0, 1)


def _lstm_layer(cell: Any, x: Any) -> Any:
    """[T, B, inputs] -> [T, B, hidden]; the gates are i, f, o, u, with 1 added to f as is usual."""
    inputs, recurrent = jnp.split(cell["w"], [x.shape[-1]])

    def step(state: Any, from_below: Any) -> Any:
        i, f, o, u = jnp.split(from_below + state[0] @ recurrent, 4, axis=-1)
        memory = jax.nn.sigmoid(f + 1) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(u)
        out = jax.nn.sigmoid(o) * jnp.tanh(memory)
        return (out, memory), out

    nothing = jnp.zeros((x.shape[1], recurrent.shape[0]))
    return jax.lax.scan(step, (nothing, nothing), x @ inputs + cell["b"][None, None])[1]


def _transformer_init(width: int, layers: int, length: int) -> Callable[[Any], Any]:
    def matrix(key: Any, inputs: int, outputs: int) -> Any:
        return jax.random.normal(key, (inputs, outputs)) * inputs**-0.5

    def block(key: Any) -> Any:
        sizes = {
            "attend": (width, 3 * width),
            "join": (width, width),
            "up": (width, 4 * width),
            "down": (4 * width, width),
        }
        return {
            name: matrix(k, *size)
            for k, (name, size) in zip(jax.random.split(key, 4), sizes.items(), strict=True)
        } | {"norms": jnp.ones((2, width))}

    def init(key: Any) -> Any:
        first, place, last, *inner = jax.random.split(key, 3 + layers)
        return {
            "embedding": matrix(first, CHARACTERS, width),
            "places": 0.1 * matrix(place, length, width),
            "blocks": [block(k) for k in inner],
            "norm": jnp.ones(width),
            "out": matrix(last, width, CHARACTERS),
        }

    return init


def _norm(x: Any, scale: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale[None, None]


def _transformer(heads: int) -> Callable[[Any, Any], Any]:
    """Logits [B, T, C]; no place sees a later one."""

    def logits(params: Any, x: Any) -> Any:
        size, length = x.shape
        seen = jnp.tril(jnp.ones((length, length), bool))[None, None]
        h = params["embedding"][x] + params["places"][None, :length]
        for p in params["blocks"]:
            q, k, v = (
                a.reshape(size, length, heads, -1)
                for a in jnp.split(_norm(h, p["norms"][0]) @ p["attend"], 3, axis=-1)
            )
            weights = jax.nn.softmax(
                jnp.where(seen, jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5, -1e9), -1
            )
            h = h + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(size, length, -1) @ p["join"]
            h = h + jax.nn.gelu(_norm(h, p["norms"][1]) @ p["up"]) @ p["down"]
        return _norm(h, params["norm"]) @ params["out"]

    return logits


WORKLOADS = {
    "synth": Workload(
        "logistic regression 60x10, 1,000 clients a round",
        10,
        0.01,
        1000,
        _synthetic,
        layers(60, 10),
        perceptron,
    ),
    "mlp": Workload(
        "MLP 784-200-200-10, 200 clients a round",
        10,
        0.1,
        200,
        noise((784,), 10, 1000, 60),
        layers(784, 200, 200, 10),
        perceptron,
    ),
    "emnist": Workload(
        "EMNIST CNN, 1.2 M parameters, 50 clients a round",
        20,
        0.1,
        50,
        noise((28, 28, 1), 62, 200, 100),
        _cnn_init,
        _cnn(_convolution, _pool),
        quick=_cnn(_patches, _pool_by_shape),
    ),
    "char-lstm": Workload(
        "FedJAX's Shakespeare model: 2 LSTM layers of 256, 0.82 M parameters, 80 characters, 10 clients a round",
        4,
        0.1,
        10,
        _characters(80, 200, 20),
        _lstm_init(8, 256, 2),
        _lstm,
    ),
    "transformer": Workload(
        "decoder-only transformer: 4 layers of 128, 0.81 M parameters, 32 characters, 20 clients a round",
        8,
        0.1,
        20,
        _characters(32, 400, 30),
        _transformer_init(128, 4, 32),
        _transformer(4),
    ),
}
