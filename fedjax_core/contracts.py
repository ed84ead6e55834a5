"""`check_round`: tests that an algorithm written outside this repository does the same however it is run.

    lanes = plain loops        the state and every metric, for any number of lanes
    order, room                the order of a cohort, and room for more clients, change nothing
    padding                    what stands in the padded places of a batch changes nothing
    together = one by one      several rounds in one dispatch, bit for bit
    compiled once              however many rounds there are
    compiled = as Python       each step computed value by value

>>> import numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> clients = Clients.from_list([{"x": np.full((n, 1), n, np.float32), "y": np.ones(n, np.float32)} for n in (1, 2, 5)])
>>> check_round(compose(algorithms.fedavg(models.linear(features=1), optax.sgd(0.1))), clients, batch_size=2)
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import tree
from fedjax_core.algorithms.base import Exchange
from fedjax_core.data.clients import Clients
from fedjax_core.lanes.simulator import Simulator
from fedjax_core.loops import Loops
from fedjax_core.round import Round, State
from fedjax_core.types import Batch, Carry, Key, Message

_MOST = 12  # clients of a cohort: plain loops take them one by one
_ASK = (
    "Does the algorithm keep something in Python between calls, draw by NumPy instead of by its key, or count padded places of "
    "a batch, whose mask is 0?"
)
_LOOSER = 20  # states of server and clients are often small differences of larger numbers


def check_round(
    composed: Round,
    clients: Clients,
    *,
    batch_size: int,
    epochs: int | None = None,
    steps: int | None = None,
    rounds: int = 3,
    lanes: Sequence[int] = (1, 3),
    tolerance: float = 1e-6,
    strict: bool = False,
) -> None:
    """Raises AssertionError, naming the contract and the leaf, where `composed` does not do the same however
    it is run.

    A dozen small clients are best: unequal ones, one of them empty, one with a single example, and some whose
    last batch is not full. `tolerance`: how far two models may be apart, in the norm of their difference by
    that of the model; what the server and the clients keep besides may be 20 times as far. With `strict`
    arrays of other dtypes or ranks are not promoted, as in this repository's tests."""
    plan: dict[str, Any] = {"batch_size": batch_size, "epochs": epochs, "steps": steps}
    draws = [np.random.default_rng(round).permutation(len(clients)) for round in range(rounds)]
    cohorts = [drawn[: max(1, min(_MOST, 3 * len(clients) // 4))] for drawn in draws]
    with contextlib.ExitStack() as stack:
        if strict:
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
            stack.enter_context(jax.numpy_rank_promotion("raise"))
        expected, seen = _run(Loops(composed, clients, **plan), cohorts)
        for count in lanes:
            sim = Simulator(composed, clients, lanes=count, **plan)
            sim.reserve(len(cohorts[0]))
            state, metrics = _run(sim, cohorts)
            what = f"in {count} lane{'s' if count > 1 else ''} and as plain loops"
            _check_metrics(what, metrics, seen)
            _check_close(what, state, expected, tolerance)
            if sim.traces != 1:
                raise AssertionError(
                    f"{rounds} rounds compiled {sim.traces} programs, not one: the state changed its shapes or dtypes"
                )
        _check_bits("in one dispatch and one by one", sim.run_many(sim.init(_key()), cohorts)[0], state)
        sim.reserve(len(clients))
        state, _ = _run(sim, [cohort[::-1] for cohort in cohorts])
        _check_close("with the cohort in another order and room for all clients", state, expected, tolerance)
        state, _ = _run(Loops(_with_other_padding(composed), clients, **plan), cohorts)
        _check_close("with other examples in the padding of batches", state, expected, tolerance)
        few = sorted(
            (i for i in range(len(clients)) if clients.sizes[i]), key=lambda i: int(clients.sizes[i])
        )[:2]
        state, _ = _run(Loops(composed, clients, **plan), [few])
        with jax.disable_jit():
            eager, _ = _run(Loops(composed, clients, jit=False, **plan), [few])
        _check_close("compiled and as Python", state, eager, tolerance)


def _key() -> Key:
    return jax.random.key(1)


def _run(sim: Any, cohorts: Sequence[np.ndarray | list[int]]) -> tuple[State, list[dict[str, float]]]:
    state, seen = sim.init(_key()), []
    for cohort in cohorts:
        state, metrics = sim.run(state, cohort)
        seen.append({name: float(metric) for name, metric in metrics.items()})
    return state, seen


def _with_other_padding(composed: Round) -> Round:
    """The same round, but that padded places of a batch hold the examples of the places before them."""

    def changed(exchange: Exchange) -> Exchange:
        def step(message: Message, carry: Carry, batch: Batch, key: Key) -> tuple[Carry, dict[str, Any]]:
            others = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), batch.columns)
            columns = tree.where(batch.mask > 0, batch.columns, others)
            return exchange.client.step(message, carry, Batch(columns, batch.mask), key)

        return exchange._replace(client=exchange.client._replace(step=step))

    algorithm = composed.algorithm
    return composed._replace(algorithm=algorithm._replace(exchanges=tuple(map(changed, algorithm.exchanges))))


def _check_close(what: str, got: State, expected: State, tolerance: float) -> None:
    for part, bound in (
        ("params", tolerance),
        ("server", _LOOSER * tolerance),
        ("uplink", _LOOSER * tolerance),
        ("clients", _LOOSER * tolerance),
    ):
        a, b = getattr(got, part), getattr(expected, part)
        apart = {name: np.linalg.norm(x - y) for (name, x), (_, y) in zip(_named(a), _named(b), strict=True)}
        norm = float(np.linalg.norm([np.linalg.norm(y) for _, y in _named(b)]))
        off = float(np.linalg.norm([*apart.values()]))
        if not off <= bound * norm:
            worst = max(apart, key=lambda name: np.nan_to_num(apart[name], nan=np.inf))
            raise AssertionError(
                f"state.{part} {what} are {off / norm if norm else off:.1e} of their norm apart, more than {bound:.1e}, most of all "
                f"{part}{worst}. {_ASK}"
            )


def _check_metrics(what: str, got: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for round, (now, before) in enumerate(zip(got, expected, strict=True)):
        if sorted(now) != sorted(before):
            raise AssertionError(
                f"the metrics of round {round} {what} are {sorted(now)} and {sorted(before)}"
            )
        for name, value in before.items():
            if not np.isclose(now[name], value, rtol=1e-5, atol=1e-12, equal_nan=True):
                raise AssertionError(
                    f"metric {name!r} of round {round} {what} is {now[name]:.8g} and {value:.8g}. {_ASK}"
                )


def _check_bits(what: str, got: State, expected: State) -> None:
    for (name, x), (_, y) in zip(_named(got), _named(expected), strict=True):
        if x.tobytes() != y.tobytes():
            raise AssertionError(f"state{name} is not the same {what}, bit for bit")


def _named(a: Any) -> list[tuple[str, np.ndarray]]:
    """[(path, array as float64)] of each leaf."""
    plain = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, a
    )
    return [
        (jax.tree_util.keystr(path), np.asarray(x, np.float64).ravel())
        for path, x in jax.tree_util.tree_leaves_with_path(plain)
    ]
