"""Two gradients that an algorithm may go down instead of the plain one: what `gradient=` takes."""

import jax
import jax.numpy as jnp

from fedjax_core import Batch, tree
from fedjax_core.algorithms import gradient


def sharpness_aware(rho):
    """FedSAM: the gradient at the point of the largest loss within `rho`, to first order (Qu et al., ICML
    2022, eq. 4)."""

    def at_the_worst(task, params, batch, key):
        uphill, _ = gradient(task, params, batch, key)
        return gradient(
            task,
            tree.add(params, tree.scale(rho / jnp.maximum(tree.norm(uphill), 1e-12), uphill)),
            batch,
            key,
        )

    return at_the_worst


def private(clip, noise, batch_size):
    """DP-SGD: the examples' gradients, each clipped to norm `clip`, and noise of deviation `noise * clip`,
    over the batch size that was asked for (Abadi et al., CCS 2016, algorithm 1)."""

    def of_a_batch(task, params, batch, key):
        def of_one(columns, place):
            one = Batch(jax.tree.map(lambda x: x[None], columns), jnp.ones(1))
            grads, seen = gradient(task, params, one, jax.random.fold_in(key, place))
            return tree.scale(jnp.minimum(1, clip / tree.norm(grads)), grads), seen

        places = jnp.arange(len(batch.mask), dtype=jnp.int32)
        grads, seen = jax.tree.map(
            lambda x: jnp.tensordot(batch.mask, x, 1), jax.vmap(of_one)(batch.columns, places)
        )
        leaves, structure = jax.tree.flatten(grads)
        keys = jax.random.split(jax.random.fold_in(key, len(batch.mask)), len(leaves))
        draws = [noise * clip * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        return tree.scale(1 / batch_size, tree.add(grads, jax.tree.unflatten(structure, draws))), seen

    return of_a_batch
