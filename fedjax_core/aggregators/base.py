"""The interface of aggregators, which combine reports.

    acc = add(zero(shapes, K), updates, weights, positions)      value, state = value(merge(acc, acc'), state, key)

Reports arrive a few at a time, [n, ...]: from the lanes that end a client in the same slot, or one from a
hospital. Accumulators of devices, workers or sites merge into the one that all reports together would give.
`apply` does all of it at once, and `of_reports` makes an aggregator of a rule on a matrix with a row a
client:

>>> highest = of_reports("highest", lambda rows, here, weights, key: jnp.max(jnp.where(here[:, None], rows, -jnp.inf), axis=0))
>>> apply(highest, jnp.array([[1.0, 4.0], [3.0, 2.0], [9.0, 9.0]]), here=[True, True, False]).tolist()
[3.0, 4.0]
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_core import tree
from fedjax_core.settings import Settings
from fedjax_core.types import Array, Key, Update, known


class Aggregator(NamedTuple):
    """Makes one value of many reports. A report of weight 0 is absent, and must not count."""

    name: str
    zero: Callable[[Update, int], Any]  # (the update's shapes, K places in the cohort) -> empty accumulator
    add: Callable[[Any, Update, Array, Array], Any]
    """(acc, updates [n, ...], weights [n], positions [n] int32) -> acc; a position is the client's place in
    the cohort, each filled once, and K (past the end) where the weight is 0."""
    value: Callable[[Any, Any, Key], tuple[Update, Any]]
    """(acc, state, key) -> (value, state); zeros where nothing was added. The key is for draws, such as who
    is put into which group."""
    keeps: Literal["sum", "reports"]
    """`sum`: as much as one update, whatever the cohort's size; `reports`: every report, K times the
    memory."""
    gives: Literal["one", "reports"] = "one"
    """`one`: the value is like one update; `reports`: it has every report, leaves [K, ...]."""
    init: Callable[[Update], Any] = lambda shapes: ()
    """The update's shapes -> what the server keeps for it between rounds, such as the last value."""
    linear: bool = False
    """Whether values of parts, added by their weights, give the value of the whole: reports may then be
    gathered in parts, and be readable only in sum."""
    merge: Callable[[Any, Any], Any] = tree.add
    settings: Settings = Settings()
    """The arguments that it was made with, by name: `with_settings` fills it in."""
    kept: Callable[[Any, Any, Key], Array] | None = None
    """(acc, state, key) of `value` -> [K] bool: the reports that are in the value. None: the rule leaves out
    no report as a whole."""
    alike: bool = False
    """Whether all clients count alike: of a weight only matters that it is above 0."""
    at_least: int = 1
    """The least number of clients in a cohort for which the rule means anything."""


class Reports(NamedTuple):
    """All reports, each in its client's place in the cohort."""

    updates: Update  # each leaf [K, ...]; zeros where nobody reported
    weights: Array  # [K] float32; 0 where nobody reported


class Ruling(NamedTuple):
    """The result of a rule on all reports."""

    row: Array  # [P]
    kept: Array | None = None  # [K] bool: whose reports are in it
    memory: Any = ()  # what the server keeps for the rule until the next round


def of_reports(
    name: str,
    rule: Callable[..., Array | Ruling],
    *,
    init: Callable[[Update], Any] | None = None,
    tells: bool = False,
    alike: bool = False,
    at_least: int = 1,
) -> Aggregator:
    """The aggregator of a rule on all reports: (rows [K, P], here [K] bool, weights [K], key) -> row [P], or
    a `Ruling`.

    A client's row has all leaves of its update one after another; the row of an absent client is zeros. K may
    be larger than the cohort. With nobody here the value is zeros, whatever the rule gives. A client who sent
    a number that is not finite is absent too, but has a weight above 0. With `init` the rule's last argument
    is the memory of its last `Ruling`. A rule with `tells` says in each `Ruling` whom it kept.
    """

    def zero(shapes: Update, cohort: int) -> Reports:
        check_floating(name, shapes)
        return Reports(
            jax.tree.map(lambda x: jnp.zeros((cohort, *x.shape), x.dtype), shapes),
            jnp.zeros(cohort, jnp.float32),
        )

    def add(acc: Reports, updates: Update, weights: Array, positions: Array) -> Reports:
        return tree.put(acc, positions, Reports(updates, weights.astype(jnp.float32)))

    def decide(acc: Reports, state: Any, key: Key) -> Ruling:
        rows, here = rows_of(acc)
        ruled = rule(rows, here, acc.weights, key, *(() if init is None else (state,)))
        ruled = ruled if isinstance(ruled, Ruling) else Ruling(ruled)
        anybody = jnp.any(here)
        memory = state if init is None else tree.where(anybody, ruled.memory, state)
        return Ruling(
            jnp.where(anybody, ruled.row, 0).astype(rows.dtype),
            here if ruled.kept is None else ruled.kept & here,
            memory,
        )

    def value(acc: Reports, state: Any, key: Key) -> tuple[Update, Any]:
        _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], acc.updates))
        ruled = decide(acc, state, key)
        return unravel(ruled.row), ruled.memory

    def kept(acc: Reports, state: Any, key: Key) -> Array:
        accepted = decide(acc, state, key).kept
        assert accepted is not None
        return accepted

    made = Aggregator(name, zero, add, value, keeps="reports", alike=alike, at_least=at_least)
    return made._replace(init=made.init if init is None else init, kept=kept if tells else None)


def rows_of(acc: Reports) -> tuple[Array, Array]:
    """(rows [K, P], here [K] bool): each report as one row, zeros where it is absent or not finite."""
    rows = jax.vmap(lambda update: ravel_pytree(update)[0])(acc.updates)
    here = (acc.weights > 0) & jnp.all(jnp.isfinite(rows), axis=1)
    return jnp.where(here[:, None], rows, 0), here


def apply(
    aggregator: Aggregator, updates: Update, weights: Any = None, here: Any = None, *, key: Key | None = None
) -> Update:
    """The value that `aggregator` makes of these updates, leaves [K, ...], in a first round; clients not
    `here` [K] did not report.

    `weights` [K]: all 1 where not given. Raises ValueError where they differ and the rule counts all alike,
    and where too few are here."""
    places = jnp.arange(len(jax.tree.leaves(updates)[0]))
    there = jnp.ones(places.shape, bool) if here is None else jnp.asarray(here, bool)
    weights = jnp.where(
        there,
        jnp.ones(places.shape, jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32),
        0,
    )
    there = weights > 0
    if known(there):
        check_cohort(aggregator, int(jnp.sum(there)))
    if (
        aggregator.alike
        and known(weights)
        and len(differ := sorted({float(w) for w in weights if w > 0})) > 1
    ):
        raise ValueError(
            f"{aggregator.name}() counts all clients alike, whatever they say of themselves, and was given weights from {differ[0]:g} to "
            f"{differ[-1]:g}: leave weights= out, or use one that goes by them, such as median(weighted=True)"
        )
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates)
    rows = tree.where(there, updates, tree.zeros_like(updates))
    acc = aggregator.add(
        aggregator.zero(shapes, len(places)),
        rows,
        weights,
        jnp.where(there, places, len(places)).astype(jnp.int32),
    )
    return aggregator.value(acc, aggregator.init(shapes), jax.random.key(0) if key is None else key)[0]


def check_cohort(aggregator: Aggregator, clients: int) -> None:
    """Raises where a cohort of this many clients is too small for the rule; an empty cohort is allowed."""
    if 0 < clients < aggregator.at_least:
        raise ValueError(
            f"{aggregator.name}() with {aggregator.settings} needs a cohort of at least {aggregator.at_least} clients, and this one has "
            f"{clients}: with more that lie than that, no rule can tell them apart. Choose a smaller f, or a larger cohort"
        )


def check_floating(name: str, shapes: Update) -> None:
    """Raises where a report holds whole numbers, whose average would lose all digits after the point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{name}() averages numbers with a point, and a client reports {jax.tree_util.keystr(path) or 'an array'} as {leaf.dtype}: "
                "report it with .astype(jnp.float32), or add whole numbers, as under fc.uplink.secure, with "
                "aggregator=fc.aggregators.total()"
            )
