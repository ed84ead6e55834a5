"""Low-rank compression, leaf by leaf: each matrix is sent as the product of a tall and a wide one, by
PowerSGD or as the best product.

    powersgd    P = orthonormal(M Q),  Q' = M^T P;  P and Q' are sent, M ~ P Q'^T, and Q' is where the client begins next time
    low_rank     M ~ U_r S_r V_r^T, the singular value decomposition cut at r

Exact where the rank of M is at most r. A leaf of three or more axes is a matrix of its last axis by all
others; vectors, and matrices that two factors would not make smaller, are sent as they are. Biased: inside
`feedback` what is lost comes back later. Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression
for Distributed Optimization", NeurIPS 2019, algorithm 1.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import bits, roundtrip
>>> update = jnp.outer(jnp.arange(1.0, 9.0), jnp.ones(10))
>>> bool(jnp.allclose(roundtrip(powersgd(1), update, jax.random.key(0)), update, rtol=1e-5)), bits(powersgd(1), update) == 32 * (8 + 10)
(True, True)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Message, Own, Update
from fedjax_core.uplink.base import Sender, Stage, stage


@with_settings
def powersgd(rank: int) -> Stage:
    """Sends matrices as products of this rank, by one step of the power method from where the client's last
    one ended."""
    _check("powersgd", rank)

    def init_client(shapes: Update) -> Own:
        """The first wide factor of each matrix, the same for all clients."""
        leaves = jax.tree.leaves(tree.wide(tree.shapes(shapes)))
        return tuple(
            jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (form[1], rank), x.dtype)
            if (form := _form(x.shape, rank))
            else ()
            for i, x in enumerate(leaves)
        )

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        sent, kept = list[Any](), list[Any]()
        for x, before in zip(jax.tree.leaves(tree.wide(update)), own, strict=True):
            if (form := _form(x.shape, rank)) is None:
                sent.append(x)
                kept.append(())
                continue
            matrix = x.reshape(form)
            tall = jnp.linalg.qr(matrix @ before)[0]
            wide = matrix.T @ tall
            sent.append((tall, wide))
            kept.append(jnp.where(tree.finite(wide) & jnp.any(wide != 0), wide, before))
        return tuple(sent), tuple(kept)

    return stage("powersgd", init_client=init_client, encode=encode, expand=_expand, measurable=True)


@with_settings
def low_rank(rank: int) -> Stage:
    """Sends matrices as the nearest products of this rank."""
    _check("low_rank", rank)

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        def factors(x: Array) -> Any:
            if (form := _form(x.shape, rank)) is None:
                return x
            fine = tree.finite(x)  # the decomposition of anything else is undefined
            left, sizes, right = jnp.linalg.svd(jnp.where(fine, x, 0).reshape(form), full_matrices=False)
            return left[:, :rank] * jnp.where(fine, sizes[:rank], jnp.nan)[None], right[:rank].T

        return tuple(factors(x) for x in jax.tree.leaves(tree.wide(update))), own

    return stage("low_rank", encode=encode, expand=_expand, measurable=True)


def _expand(state: Any, message: Message, shapes: Update) -> Update:
    structure: Any
    leaves, structure = jax.tree.flatten(tree.wide(tree.shapes(shapes)))
    whole = [
        (sent[0] @ sent[1].T).reshape(x.shape) if isinstance(sent, tuple) else sent
        for sent, x in zip(message, leaves, strict=True)
    ]
    return structure.unflatten(whole)


def _form(shape: tuple[int, ...], rank: int) -> tuple[int, int] | None:
    """The matrix that a leaf is; None where it is sent as it is."""
    if len(shape) < 2:
        return None
    m, n = math.prod(shape[:-1]), shape[-1]
    return (m, n) if rank * (m + n) < m * n else None


def _check(name: str, rank: int) -> None:
    if not rank >= 1:
        raise ValueError(f"{name} needs a rank >= 1, got {rank}")
