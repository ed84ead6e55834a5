"""Model FLOPs of a local step, and their share of what the hardware can do (MFU, model FLOPs utilisation).

    MFU = operations of a step x steps/s / (peak of one device x devices)

It counts matrix products and convolutions in the traced step with its gradient: two operations for each
multiplication, the usual count of "model FLOPs". What a backend recomputes, pads or rewrites does not count.
A loop counts as often as it runs if the trace knows that, else once.

>>> import optax
>>> from fedjax_core import algorithms, compose, models
>>> composed = compose(algorithms.fedavg(models.logistic(features=60, classes=10), local=optax.sgd(0.1)))
>>> examples = {"x": jax.ShapeDtypeStruct((20, 60), "float32"), "y": jax.ShapeDtypeStruct((20,), "int32")}
>>> operations(composed, examples)["float32"] == 2 * 20 * 60 * 10 * 2  # forward, and the gradient of the weights
True
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from fedjax_core import keys
from fedjax_core.round import Round
from fedjax_core.types import Batch, Columns
from fedjax_core.xla.convolutions import Convolution

PEAK_FLOPS: dict[str, dict[str, float]] = {
    "NVIDIA A100": {"float32": 156e12, "bfloat16": 312e12, "float16": 312e12},
    "NVIDIA H100": {"float32": 495e12, "bfloat16": 989e12, "float16": 989e12},
    "NVIDIA H200": {"float32": 495e12, "bfloat16": 989e12, "float16": 989e12},
    "TPU v4": {"float32": 275e12, "bfloat16": 275e12},
    "TPU v5 lite": {"float32": 197e12, "bfloat16": 197e12},
    "TPU v5p": {"float32": 459e12, "bfloat16": 459e12},
    "TPU v6 lite": {"float32": 918e12, "bfloat16": 918e12},
}
"""Operations a second of dense products, from the makers' data sheets (SXM boards), by the beginning of a
device's name and the dtype of the factors. float32 is as JAX multiplies it by default: in TensorFloat-32 on
GPUs, in bfloat16 on TPUs."""


def operations(composed: Round, examples: Columns) -> dict[str, float]:
    """The operations of one local step of one client, by dtype, as the mean over exchanges with steps; shapes
    of examples [batch size, ...] are enough."""
    exchanges = [
        (e, exchange) for e, exchange in enumerate(composed.algorithm.exchanges) if not exchange.work.idle
    ]

    def steps(key: Any, batch: Any) -> Any:
        state = composed.init(key, 1)
        kept = jax.tree.map(lambda x: x[0], state.clients)
        mask = jnp.ones(jax.tree.leaves(batch)[0].shape[0])
        results = []
        for e, exchange in exchanges:
            message = composed.told(e, state)
            carry = exchange.client.begin(message, kept.own, key)
            results.append(exchange.client.step(message, carry, Batch(batch, mask), key))
        return results

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), examples)
    traced = jax.make_jaxpr(steps)(keys.shape(), shapes)
    counts: Counter[str] = Counter()
    for dtype, count in _products(traced.jaxpr, 1):
        counts[dtype] += count
    return {dtype: count / len(exchanges) for dtype, count in counts.items()}


def seconds_at_peak(counts: Mapping[str, float], kind: str) -> float:
    """The seconds that these operations take at the peak of a device of this kind; NaN where that is not
    known."""
    peaks = next((peaks for name, peaks in PEAK_FLOPS.items() if kind.startswith(name)), {})
    return sum(count / peaks.get(dtype, math.nan) for dtype, count in counts.items())


def _products(jaxpr: Any, times: int) -> Iterator[tuple[str, int]]:
    """Yields (dtype, operations) of every product in the jaxpr."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (over, _), _ = eqn.params["dimension_numbers"]
            x = eqn.invars[0].aval
            yield (
                str(x.dtype),
                2 * times * math.prod(eqn.outvars[0].aval.shape) * math.prod(x.shape[a] for a in over),
            )
        elif eqn.primitive.name == "conv_general_dilated":
            yield str(eqn.invars[0].aval.dtype), 2 * times * Convolution.of(eqn).multiplications
        else:
            branches = [_products(inner, times * eqn.params.get("length", 1)) for inner in _inner(eqn)]
            if eqn.primitive.name == "cond":  # one of them runs; the costliest counts
                yield from max(
                    (list(branch) for branch in branches),
                    key=lambda products: sum(count for _, count in products),
                )
            else:
                for branch in branches:
                    yield from branch


def _inner(eqn: core.JaxprEqn) -> Iterator[Any]:
    for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr))):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
