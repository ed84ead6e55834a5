"""Secure aggregation by pairwise masks: the server reads the sum of the reports, and no single report.

    sent_i = w_i round(u_i / step) + sum_{j > i} m_ij - sum_{j < i} m_ij      in whole numbers modulo 2^32; m_ij drawn from key_ij
    sum_i sent_i = sum_i w_i round(u_i / step)                                each mask is there once with each sign

`fedjax_core.secure_aggregation.ring` turns a report into whole numbers: rounded at random, so without bias,
and such that no sum wraps. The masks cancel to the last bit, so the value is the one that the protocol of
`fedjax_core.secure_aggregation` gives. Here masks are drawn from keys of pairs, which lets a simulation have
drop-outs: the clients who reported then reveal the keys that they share with those who did not, and the
server removes those masks. Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", CCS 2017.

Needs `aggregators.total()`, and that keys be shared between each two clients (`Sender.pairs`). In a
simulation these come from the run's key. At a real site the stage has no peers, so it draws no mask; the site
masks what it sends by the protocol, with secrets of its own.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import message_shapes
>>> message_shapes(secure(bound=1.0), {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}).ring.update["w"].dtype.name
'uint32'
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from fedjax_core.secure_aggregation.ring import Masked, Weighted, dequantize, quantize, ring
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, Message, Own, Update
from fedjax_core.uplink.base import Info, Sender, Stage, stage


@with_settings
def secure(bound: float, bits: int = 16, weights: int = 2**16) -> Stage:
    """Hides each report in the sum of all, in steps of `bound / (2^(bits - 1) - 1)`.

    A report with a number beyond `bound`, or not finite, is refused; `fc.uplink.clip(bound)` before it keeps
    all numbers within. `weights` is the largest sum of all weights, which are whole: with K clients none may
    weigh more than `weights / K`. Settings with which a sum could wrap (`bits + ceil(log2(weights))` above
    32) raise. A simulation draws every mask: K times the size of an update for each client.
    """
    exact = ring(bound, bits, weights)

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        most = weights // jnp.maximum(jnp.sum(sender.here, dtype=jnp.int32), 1)
        weight = sender.weight.astype(jnp.int32)
        may_weigh = (sender.weight == weight.astype(jnp.float32)) & (weight >= 0) & (weight <= most)
        leaves, structure = jax.tree.flatten(update)
        # NaN is not, either
        fits = jnp.stack(
            [may_weigh, *(jnp.all(jnp.abs(x.astype(jnp.float32)) <= exact.bound) for x in leaves)]
        )
        keys = [jax.random.fold_in(sender.key, i) for i in range(len(leaves))]
        whole = [quantize(exact, jnp.nan_to_num(x), weight, key) for x, key in zip(leaves, keys, strict=True)]
        plain = Weighted(jax.tree.unflatten(structure, whole), weight.astype(jnp.uint32))
        # as at a site, which masks by the protocol: nothing is drawn, nor compiled
        alone = len(sender.here) == 1
        masked = plain if alone else _masked(plain, sender.pairs, _signs(sender.place, sender.here))
        return Masked(masked, jnp.where(jnp.all(fits), 0.0, jnp.nan).astype(jnp.float32)), own

    def recover(state: Any, own: Own, sender: Sender, reported: Array) -> Array:
        dropped = sender.here & ~reported
        words = jax.random.key_data(sender.pairs)  # [K, words]
        return jnp.where(dropped[:, None], words, jnp.zeros_like(words))

    def finish(state: Any, value: Masked, info: Info, key: Key) -> tuple[Update, Any]:
        dropped = info.here & ~info.reported

        def unmask(i: Array, ring: Weighted) -> Weighted:
            """Removes the masks that the client in place i shares with clients who dropped out."""
            pairs = jax.random.wrap_key_data(info.recovered[i], impl=jax.random.key_impl(info.shared))
            return _masked(ring, pairs, -_signs(i, dropped) * info.reported[i].astype(jnp.int32))

        def unmasked() -> Weighted:
            total: Weighted = lax.fori_loop(0, len(dropped), unmask, value.ring)
            return total

        # of real sites, which took all masks off
        protocol = isinstance(info.recovered, tuple) and not info.recovered
        total = value.ring if protocol else lax.cond(jnp.any(dropped), unmasked, lambda: value.ring)
        return jax.tree.map(lambda x: dequantize(exact, x, total.weight), total.update), state

    return stage("secure", encode=encode, finish=finish, ring=exact, recover=recover)


def _signs(place: Array, others: Array) -> Array:
    """[K] int32: 1 for the places of `others` [K] after `place`, -1 for those before it, else 0."""
    return jnp.sign(jnp.arange(len(others), dtype=jnp.int32) - place) * others.astype(jnp.int32)


def _masked(ring: Weighted, pairs: Key, signs: Array) -> Weighted:
    """The ring with the mask of each of these keys [K] added as often as its sign says: 1, 0 or -1 times."""
    # as one vector: one generator to compile instead of one a leaf, each of which takes XLA a second
    flat, unravel = ravel_pytree(ring)

    def add(j: Array, flat: Array) -> Array:
        times = signs[j].astype(jnp.uint32)  # -1 is 2^32 - 1
        return flat + times * jax.random.bits(pairs[j], flat.shape, jnp.uint32)

    masked: Weighted = unravel(lax.fori_loop(0, len(signs), add, flat))
    return masked
