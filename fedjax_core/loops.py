"""A round as plain Python loops: one client after another, one step after another, one report after another.

It has none of the engine's lanes, schedules, scans and mask arithmetic. The engine must give the same result,
and `fedjax_core.contracts` compares the two. It is slow, but everything in a round can be looked at:

    Loops(..., jit=False)                       prints and a debugger work inside a client's steps
    loops.run(state, cohort, each=print)        every client's report: its update, its weight, what it keeps, its metrics
    jax.grad(f) of an f that calls loops.run    gradients through rounds

>>> import optax
>>> from fedjax_core import algorithms, compose, models
>>> clients = Clients.from_list([{"x": np.full((n, 1), n, np.float32), "y": np.ones(n, np.float32)} for n in (1, 2)])
>>> loops = Loops(compose(algorithms.fedavg(models.linear(features=1), optax.sgd(0.05))), clients, batch_size=2)
>>> visits = []
>>> state, metrics = loops.run(loops.init(jax.random.key(0)), [0, 1], each=visits.append)
>>> [(visit.client, f"{float(visit.update['w'][0]):.2f}", float(visit.weight)) for visit in visits]
[(0, '0.10', 1.0), (1, '0.20', 2.0)]
>>> def end(w):
...     state, _ = loops.run(loops.init(jax.random.key(0), {"w": w, "b": jnp.zeros(())}), [0, 1])
...     return jnp.sum(state.params["w"])
>>> f"{float(jax.grad(end)(jnp.zeros(1))[0]):.2f}"
'0.70'
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import keys, tallies, tree
from fedjax_core.aggregators.slotted import plain
from fedjax_core.algorithms.base import Seen, told
from fedjax_core.client_state import Resident
from fedjax_core.constants import compiled
from fedjax_core.data.batches import Plan
from fedjax_core.data.clients import Clients
from fedjax_core.data.cohort import as_cohort
from fedjax_core.evaluation import Evaluation
from fedjax_core.lanes.checks import check_counts, check_model, check_simulation
from fedjax_core.lanes.evaluate import evaluate_state, score_state
from fedjax_core.metrics import Sum, add
from fedjax_core.one_by_one import one_by_one
from fedjax_core.round import Among, Encoded, Kept, Round, State, nobody, reports_of
from fedjax_core.settings import arguments
from fedjax_core.types import Array, Batch, Key, Params, Update


class Visit(NamedTuple):
    """One client's report in one exchange; refused reports are not shown."""

    exchange: int
    client: int  # its position in the population
    update: Update  # as the server reads it, after the stages of the uplink
    weight: Array
    kept: Kept  # what the client keeps now
    metrics: dict[str, Any]  # of its steps and its report, added


class Loops:
    """Runs rounds of `composed` over `clients` as plain loops, with the calls of `Simulator`: `init`, `run`,
    `evaluate`.

    `batch_size`, `epochs`, `steps`, `seed` and `order` are those of `Simulator`. With `jit=False` a client's
    steps are not compiled, so that `print`, `breakpoint()` and assertions on values work in them; the rest of
    a round never is."""

    def __init__(self, composed: Round, clients: Clients, jit: bool = True, **plan: Any) -> None:
        check_simulation("Loops", composed, clients, lanes=1)
        self.round, self.clients, self.plan = composed, clients, Plan(**arguments(Plan, **plan))
        check_model(composed, clients, self.plan.batch_size)
        given = composed.algorithm.task.constants
        made: Any = partial(compiled, constants=given) if jit else lambda f: f
        self.steps = [made(exchange.client.step) for exchange in composed.algorithm.exchanges]
        self.senders = [
            jax.jit(partial(composed.sender, e)) if jit else partial(composed.sender, e)
            for e in range(len(self.steps))
        ]

    def __repr__(self) -> str:
        return f"Loops({self.round}, {len(self.clients):,} clients with {self.clients.examples:,} examples, {self.plan})"

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes the answer, to the last bit, besides the `Round` and the data."""
        return self.plan.settings

    def init(self, key: Key, params: Params | None = None) -> State:
        """The state before the first round; from `params` where given, else as the task begins from `key`."""
        return self.round.init(key, len(self.clients), params)

    def evaluate(self, state: State, clients: Clients | None = None) -> Evaluation:
        """Evaluates the model on the examples of `clients` (default: those trained on); a client with a model
        of its own on that."""
        kept = Resident(len(self.clients))
        return evaluate_state(self.round.algorithm, state, self.clients, kept, on=clients)

    def score(self, state: State, clients: Any) -> dict[str, np.ndarray]:
        """Each metric of the clients at these positions [n], {name: [n]}, for a sampler that chooses by them;
        NaN without examples."""
        return score_state(self.round.algorithm, state, self.clients, clients, Resident(len(self.clients)))

    def run_many(
        self, state: State, cohorts: Sequence[Any], *, donate: bool = False
    ) -> tuple[State, dict[str, Any]]:
        """Rounds one after another: (state, metrics with leaves [R])."""
        return one_by_one(self.run, state, cohorts, donate=donate)

    def run(
        self,
        state: State,
        cohort: Any,
        *,
        donate: bool = False,
        each: Callable[[Visit], Any] = lambda visit: None,
    ) -> tuple[State, dict[str, Any]]:
        """One round with the clients at these positions: (state, metrics that add). `each` is called with
        every client's `Visit`.

        The state given is never used up, whatever `donate` says.
        """
        cohort, drawn = as_cohort(cohort, len(self.clients))
        check_counts(self.round, np.asarray(drawn))
        number, seen, refused = int(state.round), list[Mapping[str, Any]](), set[int]()
        counts, brought = [float(count) for count in drawn], list[tuple[int, int]]()
        for e, exchange in enumerate(self.round.algorithm.exchanges):
            sent_down, state = self.round.broadcast(e, state, jnp.asarray(self.places(cohort), jnp.int32))
            weight: Any = 0.0
            message, acc, number_of = self.round.listen(e, sent_down), None, 0.0
            numbers = nobody(
                exchange, reports_of(self.round)[e].stats, max(1, len(cohort)), len(self.clients)
            )
            if numbers is not None and len(cohort):
                numbers = numbers._replace(position=jnp.asarray(cohort, jnp.int32))
            among, reported = self.among(cohort, refused), np.zeros(max(1, len(cohort)), bool)
            for place, (i, count) in enumerate(zip(cohort, counts, strict=True)):
                visit = (
                    None
                    if int(i) in refused
                    else self.visit(e, state, told(message, place), int(i), number, among, place)
                )
                if visit is None:
                    continue
                report, metrics = visit
                update, usable = self.round.receive(e, state.uplink[e], report.wire, report.weight)
                if not (bool(usable) and bool(tree.finite((report.kept, report.stats)))):
                    refused.add(int(i))
                    continue
                seen += metrics
                reported[place] = True
                if exchange.update is not None:
                    acc = self.round.aggregator.zero(update, len(cohort)) if acc is None else acc
                    one = jax.tree.map(lambda x: x[None], update)
                    acc = self.round.aggregator.add(
                        acc, one, jnp.array([report.weight * count]), jnp.array([place])
                    )
                    if numbers is not None:
                        row = numbers._replace(
                            stats=dict(report.stats), weight=report.weight * count, position=jnp.int32(i)
                        )
                        numbers = jax.tree.map(
                            lambda rows, one, place=place: rows.at[place].set(one), numbers, row
                        )
                    weight, number_of = weight + report.weight * count, number_of + count
                clients = jax.tree.map(
                    lambda all_, row, i=i: all_.at[int(i)].set(row), state.clients, report.kept
                )
                state = state._replace(clients=clients)
                brought.append((e, int(i)))
                each(
                    Visit(
                        e,
                        int(i),
                        plain(update),
                        report.weight,
                        report.kept,
                        reduce(add, metrics, dict[str, Any]()),
                    )
                )
            if exchange.update is not None:
                if acc is None:  # nobody reported: an empty accumulator, of the shape of any client's report
                    visit = self.visit(
                        e, state, told(message, 0), int(np.argmax(self.clients.sizes)), number, among, 0
                    )
                    assert visit is not None
                    acc = self.round.aggregator.zero(
                        self.round.receive(e, state.uplink[e], visit[0].wire, visit[0].weight)[0], 1
                    )
                kept = jax.tree.map(lambda x: x[self.places(cohort)], state.clients)
                recovered = self.round.recover(e, state, kept, among, jnp.asarray(reported))
                came = (
                    jnp.float32(weight),
                    jnp.float32(number_of),
                    among.here,
                    jnp.asarray(reported),
                    recovered,
                    numbers,
                )
                seen.append(tallies.of_exchange(self.round, e, state, acc, among.here, jnp.asarray(reported)))
                state = self.round.conclude(e, state, acc, *came)
            else:
                seen.append(tallies.of_exchange(self.round, e, state, acc, among.here, jnp.asarray(reported)))
        here = [i for of, i in brought if of == len(self.steps) - 1]  # and so reported in all
        counted = {"refused": len(refused), "clients": len(here), "examples": self.clients.sizes[here].sum()}
        totals = reduce(add, seen, {name: Sum(jnp.float32(total)) for name, total in counted.items()})
        return state._replace(round=state.round + 1), totals

    def places(self, cohort: Any) -> np.ndarray:
        """The cohort's positions; one empty place where there are none."""
        return np.asarray(cohort, np.int64) if len(cohort) else np.zeros(1, np.int64)

    def among(self, cohort: Any, refused: set[int]) -> Among:
        """The cohort as its clients know it: those with examples who were not refused in this round."""
        here = [
            len(cohort) > 0 and self.clients.sizes[i] > 0 and int(i) not in refused
            for i in self.places(cohort)
        ]
        return Among(jnp.asarray(self.clients.addresses[self.places(cohort)]), jnp.asarray(here))

    def visit(
        self, e: int, state: State, message: Any, i: int, number: int, among: Among, place: int
    ) -> tuple[Encoded, list[Mapping[str, Any]]] | None:
        """(client i's report in exchange e, the metrics of its steps and its report); None for a client
        without examples."""
        exchange, clients = self.round.algorithm.exchanges[e], self.clients
        positions = np.array([i])
        if not clients.sizes[i]:
            return None
        rows, _ = self.plan.of(exchange.work).batches(positions, clients.offsets, clients.addresses, number)
        key = keys.client(state.key, number, clients.addresses[i])
        kept = jax.tree.map(lambda x: x[i], state.clients)
        carry = exchange.client.begin(message, kept.own, keys.begin(key, e))
        metrics: list[Mapping[str, Any]] = []
        for t, places in enumerate(rows):
            columns = jax.tree.map(
                lambda x, places=places: jnp.asarray(x[np.where(places < 0, ~places, places)]),
                clients.columns,
            )
            batch = Batch(columns, jnp.asarray(places >= 0, jnp.float32))
            carry, step_metrics = self.steps[e](message, carry, batch, keys.step(key, e, t))
            metrics.append(step_metrics)
        seen = Seen(jnp.float32(clients.sizes[i]), jnp.float32(len(rows)))
        sender = self.senders[e](state.key, jnp.int32(number), among, jnp.int32(place))
        report = self.round.report(e, message, state.uplink[e], Kept(*kept), carry, seen, sender)
        return report, [*metrics, report.metrics]
