"""Clips a tree of arrays to a norm, whatever it holds: promises about one client or one example rest on it.

    u <- u min(1, bound / |u|), over all leaves together, or over groups of leaves with a bound each

The norm is never above the bound: not even for numbers as large as 1e38, whose squares overflow, or in 16
bits, which round up. A tree that is not finite becomes zeros.

>>> import jax.numpy as jnp
>>> clip_by_norm(jnp.array([3.0, 4.0]), 1.0).round(3).tolist(), clip_by_norm(jnp.array([jnp.nan, 4.0]), 1.0).tolist()
([0.6000000238418579, 0.800000011920929], [0.0, 0.0])
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.privacy import normal, thin
from fedjax_core.types import Array, Update, known

Bounds = float | tuple[tuple[str, float], ...]
"""One bound for all leaves together, or one for each group of leaves, by the name that they are under."""


def clip_by_norm(update: Update, bound: Array | float) -> Update:
    """`update` with an l2 norm of at most `bound` over all leaves; the same bits where it is shorter, zeros
    where it is not finite."""
    fine = tree.finite(update)
    kept, _ = shortened(jax.tree.map(lambda x: jnp.where(fine, x, jnp.zeros_like(x)), update), bound)
    return kept


def clipped_sum(rows: Any, here: Array, bound: float) -> Update:
    """The sum of `rows`, leaves [B, ...] or `thin.Thin`, of those `here` [B], each shortened to an l2 norm of
    at most `bound` over all leaves.

    A row whose norm float32 cannot hold (NaN, above 1e19) adds nothing. The rows are read twice: for their
    norms, and for their sum."""
    norms = thin.norms(rows)
    counts = jnp.isfinite(norms) & (here > 0)
    factors = jnp.where(counts, jnp.minimum(1, bound / jnp.where(norms > 0, norms, bound)), 0)
    return thin.total(rows, counts, factors)


def shortened(update: Update, bound: Array | float) -> tuple[Update, Array]:
    """(`update` with a norm of at most `bound`, whether it was within already); NaN where it is not finite,
    so that it is refused."""
    bound = jnp.asarray(bound, jnp.float32)
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(update)]
    if not leaves:
        return update, jnp.bool_(True)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves]))
    unit = jnp.where(largest > 0, largest, 1)
    root = tree.norm([x / unit for x in leaves])  # at least 1, and no square of it overflows
    within = largest * root <= bound

    def shorten(x: Array) -> Array:
        room = bound if x.dtype.itemsize >= 4 else bound * (1 - 2**-7)  # leaves space for rounding to 16 bits
        return jnp.where(
            within, x, ((x.astype(jnp.float32) / unit) * (room / jnp.maximum(root, 1))).astype(x.dtype)
        )

    return jax.tree.map(shorten, update), within


def bounds(clip: float | Mapping[str, float] | Bounds, name: str = "clip") -> Bounds:
    """The bound or bounds, checked, in a form that can be hashed."""
    if isinstance(clip, (Mapping, tuple)):
        checked = tuple((str(group), float(bound)) for group, bound in dict(clip).items())
        if not checked or any(not 0 < bound < math.inf for _, bound in checked):
            raise ValueError(
                f"{name}= has a bound above 0 for each group of leaves, as {{'0': 1.0, '1': 0.5}}, got {dict(clip)}"
            )
        return checked
    if known(clip) and not 0 < clip < math.inf:
        raise ValueError(
            f"{name}= must be above 0, the norm to which each client's update is clipped, got {clip!r}"
        )
    return float(clip)


def total(clip: Bounds) -> float:
    """The norm of an update with every group at its bound."""
    return math.sqrt(sum(bound**2 for _, bound in clip)) if isinstance(clip, tuple) else clip


def clipped(update: Update, clip: Bounds) -> Update:
    """`update` with each group clipped to its bound. Raises where a leaf is in no group, or in two."""
    if not isinstance(clip, tuple):
        return shortened(update, clip)[0]
    structure: Any
    leaves, structure = jax.tree.flatten(update)
    groups = [[group for group, _ in clip if tree.is_under(name, group)] for name in tree.names(update)]
    for name, of in zip(tree.names(update), groups, strict=True):
        if len(of) != 1:
            listed = ", ".join(repr(group) for group, _ in clip)
            raise ValueError(
                f"clip= has the groups {listed}, and leaf {name!r} is under {len(of)} of them: put each under one"
            )
    for group, bound in clip:
        where = [i for i, (of,) in enumerate(groups) if of == group]
        if not where:
            raise ValueError(
                f"clip= has the group {group!r}, and no leaf is under it: they are {', '.join(map(repr, tree.names(update)))}"
            )
        short, _ = shortened([leaves[i] for i in where], bound)
        for i, x in zip(where, short, strict=True):
            leaves[i] = x
    return structure.unflatten(leaves)


def add_normal(value: Update, deviation: Array | float, key: Any) -> Update:
    """`value` plus independent N(0, deviation^2) in every coordinate, in float32 at least."""
    structure: Any
    leaves, structure = jax.tree.flatten(tree.wide(value))
    draws = normal.normals(key, [x.shape for x in leaves])
    return structure.unflatten(
        [x + jnp.asarray(deviation, x.dtype) * z.astype(x.dtype) for x, z in zip(leaves, draws, strict=True)]
    )
