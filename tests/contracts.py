"""What the contract tests share: the zoo's rounds, run once and kept, how states are compared, and contracts
without a round.

An entry's round is built, compiled and run once a process, whichever tests ask for it. `check_stage` and
`check_aggregator` hold a piece to all of its contract that needs no training.
"""

from collections.abc import Iterable
from functools import cache, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core import Simulator, State, tree, uplink
from fedjax_core.loops import Loops as Reference
from fedjax_core.uplink.base import Info, alone, check_expands
from tests.zoo import SIZES, ZOO, clients, round_of

ROUNDS, BATCH = 5, 4
COHORTS = [np.random.default_rng(r).permutation(len(SIZES))[:9] for r in range(ROUNDS)]
# One of each way that a round can go, with --long; under the contracts that compile a program of their own, the
# others run with --slow.
KINDS = (
    "fedavg",
    "ifca",
    "scaffold, clip, feedback",
    "mime, clip, feedback",
    "trimmed mean",
    "secure",
)
# Those that do what no other does in a round are held to plain loops with --long, three of them by default
# (`tests/long.py`). The others are of one make with one of these, have a proof by themselves, and run with
# --slow.
DIFFERENT = (
    *KINDS,
    "by round",
    "proxskip",
    "fedper",
    "fedbn",
    "per-fedavg",
    "metrics of a report",
    "two trips",
    "every report",
    "addressed",
    "dp-sgd",
    "ef21",
    "fednova, clip",
    "signs",
    "adaptive gaussian",
    "banded gaussian",
    "local gaussian",
    "downlink",
    "delta",
    "delta for each",
    "remembers, draws",
    "nnm, centered clipping",
    "total",
    "cox",
    "linen dropout",
    "linen batch norm",
    "accumulate",
    "bfloat16",
    "head only",
)


def entries_of(fast: Iterable[str], slow: Iterable[str] = ()):
    """A test's parameter `name`: these entries of the zoo, and others with --slow; an entry's tests share a
    worker, and its programs."""

    def of(name: str, *marks: pytest.MarkDecorator):
        return pytest.param(name, marks=(pytest.mark.xdist_group(name), *marks))

    return pytest.mark.parametrize(
        "name", [*map(of, fast), *(of(name, pytest.mark.slow) for name in slow if name not in fast)]
    )


# Of those that are brief, one of each kind: a pass before, the server's look at each client, an optimiser that
# is kept.
BRIEF_KINDS = ("scaffold_one", "fedadamw", "diloco", "afl", "fedmgda", "fedala", "fedproto")
BRIEF = [name for name, entry in ZOO.items() if entry.brief]
entries = entries_of(DIFFERENT, slow=ZOO)
pieces = entries_of(KINDS, slow=ZOO)


@cache
def built(name: str):
    return round_of(name), clients(ZOO[name].data)


def simulator(name: str, **settings) -> Simulator:
    composed, data = built(name)
    return Simulator(composed, data, **{"batch_size": BATCH, "epochs": 2, "lanes": 3, **settings})


def run(sim, cohorts=COHORTS, state=None):
    state, seen = sim.init(jax.random.key(1)) if state is None else state, []
    for cohort in cohorts:
        state, found = sim.run(state, cohort)
        seen.append(found)
    return state, seen


@cache
def usual(name: str):
    """What three lanes do in five rounds: (simulator, state, metrics)."""
    sim = simulator(name)
    return (sim, *run(sim))


@cache
def by_plain_loops(name: str):
    return run(Reference(*built(name), batch_size=BATCH, epochs=2))


def assert_close(got: State, expected: State):
    """The model to 1e-6 of its norm; what the server and the clients keep besides to 2e-5.

    Control variates and residuals are small differences of larger numbers, so float32 leaves fewer digits in
    them: a change of 1e-7 in a model is one of 1e-7 / (T lr) in a control variate, and of 1e-7 * 2^bits in
    what a quantiser left over."""
    assert_norm(got.params, expected.params, 1e-6)
    for part in ("server", "uplink", "clients", "round"):
        assert_norm(getattr(got, part), getattr(expected, part), 2e-5)


def assert_norm(got, expected, bound: float):
    x, y = (
        np.concatenate([[0.0], *(np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(t))])
        for t in (got, expected)
    )
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert np.linalg.norm(x - y) <= bound * np.linalg.norm(y)


def assert_equal(got: State, expected: State):
    """Every bit."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(bits(got)), jax.tree.leaves(bits(expected)), strict=True
    ):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


def bits(state: State):
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


SHAPES = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": jax.ShapeDtypeStruct((4,), jnp.float32)}


def updates(shapes, number: int, seed: int = 0):
    """So many random updates of these shapes, leaves [number, ...], of sizes from 0.01 to 100."""
    rng, sizes = np.random.default_rng(seed), np.logspace(-2, 2, number)

    def leaf(x):
        return (rng.normal(size=(number, *x.shape)) * sizes.reshape(-1, *[1] * len(x.shape))).astype(x.dtype)

    return jax.tree.map(leaf, shapes)


def row(a, i: int):
    """Row i of every leaf, by NumPy: each function of JAX that a check calls by itself takes 20 ms to
    compile."""
    return jax.tree.map(lambda x: np.asarray(x)[i], a)


def finite(a) -> bool:
    return all(np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree.leaves(a))


def assert_same(got, expected):
    """The same structure, shapes and dtypes; whole numbers as they are, others to 1e-5 of their norm."""
    assert tree.shapes(got) == tree.shapes(expected)
    for x, y in zip(*(map(np.asarray, jax.tree.leaves(t)) for t in (got, expected)), strict=True):
        if np.issubdtype(x.dtype, np.integer) or x.dtype == bool:
            assert np.array_equal(x, y)
        else:
            x, y = x.astype(np.float64), y.astype(np.float64)
            assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(y)


def check_stage(stage: uplink.Stage, shapes=SHAPES, number: int = 4) -> None:
    """Holds a stage to its contract, without a round.

    Many clients at once and compiled = one and eager; structure, shapes and dtypes are those that it says
    beforehand; what is not finite stays so, and zeros are finite; what it loses under `feedback`, the client
    keeps."""
    state, own, given = stage.init(shapes), stage.init_client(shapes), updates(shapes, number)
    keys = jax.random.split(jax.random.key(1), number + 3)

    def there_and_back(update, key):
        sent, kept = stage.encode(state, own, update, alone(key))
        return sent, kept, stage.expand(state, sent, shapes)

    def with_special(x):
        zeros, with_nan, with_infinity = np.zeros_like(x[:1]), x[:1].copy(), x[:1].copy()
        with_nan.flat[0], with_infinity.flat[0] = np.nan, np.inf
        return np.concatenate([x, zeros, with_nan, with_infinity])

    rows = jax.tree.map(with_special, given)
    many = jax.jit(jax.vmap(there_and_back))(rows, keys)
    for i in (0, number - 1):
        sent, kept, came = there_and_back(jax.tree.map(jnp.asarray, row(given, i)), keys[i])
        assert_same((sent, kept, came), row(many, i))
        assert tree.shapes((sent, kept)) == (uplink.message_shapes(stage, shapes), tree.shapes(own))
    assert [finite(row(many[2], number + i)) for i in range(3)] == [True, False, False]

    def meet(x):
        x = np.asarray(x)[:number]
        return x.sum(0, x.dtype) if np.issubdtype(x.dtype, np.integer) else x.astype(np.float32).mean(0)

    here = jnp.ones(number, bool)
    mean, info = (
        jax.tree.map(meet, many[2]),
        Info(jnp.float32(number), jnp.float32(number), keys[1], keys[2], here, here),
    )
    value = jax.jit(stage.finish)(state, mean, info, keys[0])
    assert tree.shapes(value) == (tree.wide(tree.shapes(shapes)), tree.shapes(state))
    check_nothing_is_lost(stage, shapes)


def check_nothing_is_lost(stage: uplink.Stage, shapes) -> None:
    """Over some rounds, what was sent under `feedback` and what the client still keeps are what was meant."""
    try:
        check_expands(stage, shapes, "a test")
    except ValueError:  # it decodes only in finish(), so `feedback` refuses it
        return
    around, meant = uplink.feedback(stage), updates(shapes, 3)
    state, own = around.init(shapes), around.init_client(shapes)
    total = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    @jax.jit
    def send(own, update, key):
        message, own = around.encode(state, own, update, alone(key))
        return around.expand(state, message, shapes), own

    for i, key in enumerate(jax.random.split(jax.random.key(2), 3)):
        came, own = send(own, row(meant, i), key)
        total = jax.tree.map(np.add, total, came)
    assert_same(jax.tree.map(np.add, total, own[0]), jax.tree.map(lambda x: x.sum(0), meant))


def check_aggregator(aggregator, shapes=SHAPES, number: int = 6) -> None:
    """Holds an aggregator to its contract, without a round.

    The order in which reports come, the groups in which they are added and merged, padding, and room for
    clients who are not there change nothing; compiled = eager; nobody gives zeros; structure, shapes and
    dtypes are those of a report."""
    reports, weights = updates(shapes, number), np.arange(1, number + 1, dtype=np.float32)
    positions, empty = np.arange(number, dtype=np.int32), aggregator.zero(shapes, number)
    absent = 2  # who is not there reports zeros, at no place
    weights[absent], positions[absent] = 0, number
    for x in jax.tree.leaves(reports):
        x[absent] = 0
    adding, merge, valued = jax.jit(aggregator.add), jax.jit(aggregator.merge), jax.jit(aggregator.value)
    state, key = aggregator.init(shapes), jax.random.key(0)

    def value(acc):
        found, after = valued(acc, state, key)
        assert tree.shapes(after) == tree.shapes(state)
        return found

    def add(acc, places):
        at = np.asarray(places)
        return adding(acc, row(reports, at), weights[at], positions[at])

    def met(*groups):
        return value(reduce(merge, [add(empty, group) for group in groups]))

    everyone = [*range(number)]
    expected, nothing = met(everyone), jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    assert tree.shapes(expected) == tree.wide(shapes)
    eagerly = aggregator.add(
        empty, jax.tree.map(jnp.asarray, reports), jnp.asarray(weights), jnp.asarray(positions)
    )
    assert_same(aggregator.value(eagerly, state, key)[0], expected)
    for groups in (
        [everyone[::-1]],
        [[i] for i in everyone],
        [everyone[:3], everyone[3:]],
        [everyone, [absent] * 3],
    ):
        assert_same(met(*groups), expected)
    assert_same(value(reduce(add, [[i] for i in everyone], empty)), expected)
    first, second, third = (add(empty, group) for group in (everyone[:1], everyone[1:3], everyone[3:]))
    assert_same(value(merge(first, merge(second, third))), expected)
    assert_same(value(empty), nothing)
    assert_same(met([absent]), nothing)
