"""What the contract tests share: the zoo's rounds, run once and kept, how states are compared, and contracts without a round.

An entry's round is built, compiled and run once a process, whichever tests ask for it. `check_stage` and `check_aggregator`
hold a piece to all of its contract that needs no training.
"""

from collections.abc import Iterable
from functools import cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core import Simulator, State, tree, uplink
from fedjax_core.loops import Loops as Reference
from fedjax_core.uplink.base import Info, check_expands
from tests.zoo import SIZES, ZOO, clients, round_of

ROUNDS, BATCH = 5, 4
COHORTS = [np.random.default_rng(r).permutation(len(SIZES))[:9] for r in range(ROUNDS)]
# One of each kind of piece; under the contracts that compile most, the others run with --slow.
KINDS = ("fedavg", "ifca", "scaffold, clip, feedback", "mime, clip, feedback", "trimmed mean")


def entries_of(fast: Iterable[str], slow: Iterable[str] = ()):
    """A test's parameter `name`: these entries of the zoo, and others with --slow; an entry's tests share a worker, and its programs."""

    def of(name: str, *marks: pytest.MarkDecorator):
        return pytest.param(name, marks=(pytest.mark.xdist_group(name), *marks))

    return pytest.mark.parametrize("name", [*map(of, fast), *(of(name, pytest.mark.slow) for name in slow if name not in fast)])


entries = entries_of(ZOO)
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

    Control variates and residuals are small differences of larger numbers, so float32 leaves fewer digits in them: a change of 1e-7
    in a model is one of 1e-7 / (T lr) in a control variate, and of 1e-7 * 2^bits in what a quantiser left over.
    """
    assert_norm(got.params, expected.params, 1e-6)
    for part in ("server", "uplink", "clients", "round"):
        assert_norm(getattr(got, part), getattr(expected, part), 2e-5)


def assert_norm(got, expected, bound: float):
    x, y = (np.concatenate([[0.0], *(np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(t))]) for t in (got, expected))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert np.linalg.norm(x - y) <= bound * np.linalg.norm(y)


def assert_equal(got: State, expected: State):
    """Every bit."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(bits(got)), jax.tree.leaves(bits(expected)), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


def bits(state: State):
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


SHAPES = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": jax.ShapeDtypeStruct((4,), jnp.float32)}


def updates(shapes, number: int, seed: int = 0):
    """So many random updates of these shapes, leaves [number, ...], of sizes from 0.01 to 100."""
    rng, sizes = np.random.default_rng(seed), np.logspace(-2, 2, number)

    def leaf(x):
        return jnp.asarray(rng.normal(size=(number, *x.shape)) * sizes.reshape(-1, *[1] * len(x.shape)), x.dtype)

    return jax.tree.map(leaf, shapes)


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

    Compiled = eager, many clients at once = one after another; structure, shapes and dtypes are those that it says beforehand; what
    is not finite stays so, and zeros are finite; what it loses under `feedback`, the client keeps.
    """
    state, own, given = stage.init(shapes), stage.init_client(shapes), updates(shapes, number)
    owns = jax.tree.map(lambda x: jnp.stack([x] * number), own)
    senders = jax.random.split(jax.random.key(1), number)
    encode, expand = partial(stage.encode, state), partial(stage.expand, state)
    sent, kept = jax.jit(jax.vmap(encode))(owns, given, senders)
    came = jax.jit(jax.vmap(expand))(sent)
    for i in range(number):
        one = encode(own, tree.take(given, i), senders[i])
        assert tree.shapes(one) == (uplink.message_shapes(stage, shapes), tree.shapes(own))
        assert_same(one, tree.take((sent, kept), i))
        assert_same(expand(one[0]), tree.take(came, i))

    def meet(x):
        return jnp.mean(tree.wide(x), 0) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.sum(x, 0, x.dtype)

    mean, info = jax.tree.map(meet, came), Info(weight=jnp.float32(number), clients=jnp.float32(number))
    value = stage.finish(state, mean, info, senders[0])
    assert tree.shapes(value) == (tree.wide(tree.shapes(shapes)), tree.shapes(state))
    assert_same(jax.jit(stage.finish)(state, mean, info, senders[0]), value)
    assert tree.finite(expand(encode(own, tree.zeros_like(shapes), senders[0])[0]))
    for wrong in (jnp.nan, jnp.inf):
        spoilt = jax.tree.map(lambda x, wrong=wrong: x.at[(0,) * x.ndim].set(wrong), tree.take(given, 0))
        assert not tree.finite(expand(encode(own, spoilt, senders[0])[0]))
    check_nothing_is_lost(stage, shapes)


def check_nothing_is_lost(stage: uplink.Stage, shapes) -> None:
    """Over some rounds, what was sent under `feedback` and what the client still keeps are what was meant."""
    try:
        check_expands(stage, shapes, "a test")
    except ValueError:  # it decodes only in finish(), so `feedback` refuses it
        return
    around, meant = uplink.feedback(stage), updates(shapes, 3)
    state, own, sent = around.init(shapes), around.init_client(shapes), tree.zeros_like(shapes)
    for i, key in enumerate(jax.random.split(jax.random.key(2), 3)):
        message, own = around.encode(state, own, tree.take(meant, i), key)
        sent = tree.add(sent, around.expand(state, message))
    assert_same(tree.add(sent, own[0]), jax.tree.map(lambda x: jnp.sum(x, 0), meant))


def check_aggregator(aggregator, shapes=SHAPES, number: int = 6) -> None:
    """Holds an aggregator to its contract, without a round.

    The order in which reports come, the groups in which they are added and merged, padding, and room for clients who are not there
    change nothing; compiled = eager; nobody gives zeros; structure, shapes and dtypes are those of a report.
    """
    weights, positions = jnp.asarray(np.arange(1, number + 1), jnp.float32), jnp.arange(number, dtype=jnp.int32)
    weights = weights.at[2].set(0)  # who is not there reports zeros, at no place
    reports = jax.tree.map(lambda x: x.at[2].set(0), updates(shapes, number))
    positions = positions.at[2].set(number)
    empty = aggregator.zero(shapes, number)

    def add(acc, places):
        at = jnp.asarray(places, jnp.int32)
        return aggregator.add(acc, tree.take(reports, at), weights[at], positions[at])

    def value(*groups):
        return aggregator.value(reduce(aggregator.merge, [add(empty, group) for group in groups]))

    expected, everyone = value(range(number)), [*range(number)]
    assert tree.shapes(expected) == tree.wide(shapes)
    assert_same(jax.jit(lambda: value(everyone))(), expected)
    for groups in ([everyone[::-1]], [[i] for i in everyone], [everyone[:2], everyone[2:]], [everyone[4:], [2], everyone[:2], [3]]):
        assert_same(value(*groups), expected)
    one_by_one = reduce(add, [[i] for i in everyone], empty)
    assert_same(aggregator.value(one_by_one), expected)
    first, second, third = (add(empty, group) for group in (everyone[:2], everyone[2:4], everyone[4:]))
    assert_same(aggregator.value(aggregator.merge(first, aggregator.merge(second, third))), expected)
    padded = [everyone, [2, 2, 2]]
    assert_same(value(*padded), expected)
    assert_same(aggregator.value(empty), tree.zeros_like(tree.wide(shapes)))
    assert_same(value([2]), tree.zeros_like(tree.wide(shapes)))
