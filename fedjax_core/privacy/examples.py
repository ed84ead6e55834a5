"""DP-SGD at clients: the gradient of a step is a noisy mean of clipped gradients of single examples, so no example tells much.

    g = (sum over the batch of clip(gradient of one example, C) + N(0, (noise C)^2)) / batch_size

Given to an algorithm as its `gradient=`. Batches are those of the engine: each pass goes once over all examples, in a drawn order. So
an example is in one step of a pass, whatever the order, and a pass is one Gaussian mechanism for it: between data sets one of whose
examples is another, a sum moves by at most 2 C, and `epochs` passes in `rounds` rounds are as many mechanisms with a multiplier of
noise / 2. Nothing is gained by sampling, for there is none. Abadi et al., "Deep Learning with Differential Privacy", CCS 2016.

The noise is drawn by the key of the step, which comes of the run's: it protects from those who see models and updates and not that key,
as in simulations. A coordinator of real sites has it; what hides data from it is noise by the site's secret, `fc.privacy.local`.

>>> private = example_level(clip=1.0, noise=8.0, batch_size=20, rounds=10, delta=1e-5)
>>> f"{private.epsilon(rounds=1):.3f} {private.epsilon():.3f}"
'0.926 3.341'
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_core import tree
from fedjax_core.algorithms.base import gradient
from fedjax_core.checks import at_least
from fedjax_core.metrics import Mean
from fedjax_core.privacy import accounting, clipping
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params


@dataclass(frozen=True)
class ExampleLevel:
    """What `example_level` gives; all of it is made of these settings."""

    clip: float
    noise: float
    batch_size: int
    rounds: int
    epochs: int
    delta: float
    microbatch: int | None = None

    @cached_property
    def gradient(self) -> Any:
        """For an algorithm's `gradient=`."""
        return noisy_gradient(self.clip, self.noise, self.batch_size, self.microbatch)

    def epsilon(self, rounds: int | None = None) -> float:
        """What a client's models of so many rounds (default: all) tell of one of its examples, at `delta`."""
        passes = self.epochs * (self.rounds if rounds is None else int(rounds))
        return accounting.epsilon(self.noise / 2, rounds=passes, delta=self.delta, sampling="everyone")


def example_level(
    *,
    clip: float,
    batch_size: int,
    rounds: int,
    epochs: int = 1,
    epsilon: float | None = None,
    noise: float | None = None,
    delta: float = 1e-6,
    microbatch: int | None = None,
) -> ExampleLevel:
    """Differential privacy of each client's examples, in `epochs` passes in each of `rounds` in which the client takes part.

    Give `epsilon`, at `delta`, or `noise`, in multiples of `clip`. `batch_size` is the engine's, and what sums are divided by.
    `microbatch` examples' gradients are in memory at once, a divisor of the batch size; all of a batch where not given. The epsilon is
    the same for every client, however many examples it has. A run with `steps=` goes on through a pass in the next round: count the
    passes of the smallest client.
    """
    at_least(1, batch_size=batch_size, rounds=rounds, epochs=epochs)
    if (epsilon is None) == (noise is None):
        raise ValueError(f"give epsilon=, for which the noise is found, or noise= itself, and not both: got {epsilon} and {noise}")
    if microbatch is not None and (microbatch < 1 or batch_size % microbatch):
        raise ValueError(f"microbatch={microbatch} does not divide batch_size={batch_size}: take a divisor")
    if epsilon is not None:
        noise = 2 * accounting.noise_for(epsilon, rounds=rounds * epochs, delta=delta, sampling="everyone")
    assert noise is not None
    accounting.epsilon(noise, rounds=0, delta=delta, sampling="everyone")  # checks
    bound = clipping.bounds(clip)
    assert isinstance(bound, float)
    return ExampleLevel(bound, float(noise), batch_size, rounds, epochs, float(delta), microbatch)


def noisy_gradient(clip: float, noise: float, batch_size: int, microbatch: int | None = None) -> Any:
    """(task, params, batch, key) -> (the noisy mean of clipped gradients, no metrics, for these would leave without noise)."""

    def of_a_batch(task: Task, params: Params, batch: Batch, key: Key) -> tuple[Params, dict[str, Mean]]:
        if task.statistics.names:
            raise ValueError(
                "DP-SGD takes the gradient of each example by itself, and BatchNorm has examples meet, in statistics without noise: use "
                "GroupNorm or LayerNorm"
            )
        size = len(batch.mask)
        if size > batch_size:
            raise ValueError(f"batches have {size} examples, and batch_size={batch_size} is what their sums are divided by: give the same")
        few = size if microbatch is None or size % microbatch else microbatch
        places = jnp.arange(size, dtype=jnp.int32)
        parts = jax.tree.map(lambda x: x.reshape(size // few, few, *x.shape[1:]), (batch.columns, batch.mask, places))

        def of_one(columns: Any, mask: Array, place: Array) -> Params:
            one = Batch(jax.tree.map(lambda x: x[None], columns), jnp.ones_like(mask)[None])
            grads, _ = gradient(task, params, one, jax.random.fold_in(key, place))
            return tree.scale(mask, clipping.clip_by_norm(tree.wide(grads), clip))

        def add(total: Params, part: Any) -> tuple[Params, None]:
            return tree.add(total, jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(of_one)(*part))), None

        total, _ = lax.scan(add, tree.wide(tree.zeros_like(params)), parts)
        noisy = clipping.add_normal(total, noise * clip, jax.random.fold_in(key, size))
        return tree.like(tree.scale(1 / batch_size, noisy), params), {}

    return of_a_batch
