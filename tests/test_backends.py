"""What a round comes to where few or none take part, in every backend: lanes, plain loops, shares of a
cluster, and sites."""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.cluster import pool
from fedjax_core.loops import Loops as Reference
from fedjax_core.sites.federation import Rules
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from tests.cluster.in_process import InProcess
from tests.contracts import assert_close, assert_equal

NAMES, SIZES, PLAN = ("charite", "mayo", "oslo"), (5, 3, 4), {"batch_size": 2, "epochs": 1}
TASK = fc.models.linear(features=2)
BACKENDS = ("lanes", "one lane", "loops", "shares", "sites")


def columns(i):
    rng = np.random.default_rng(i)
    return {
        "x": rng.normal(size=(SIZES[i], 2)).astype(np.float32),
        "y": rng.normal(size=SIZES[i]).astype(np.float32),
    }


@contextlib.contextmanager
def backend(kind, composed, monkeypatch, **plan):
    plan = plan or PLAN
    clients = fc.Clients.from_list([columns(i) for i in range(3)], ids=list(NAMES))
    for name, value in (
        ("WorkerPool", InProcess),
        ("connect", lambda *_: None),
        ("disconnect", lambda: None),
    ):
        monkeypatch.setattr(pool, name, value)
    if kind == "loops":
        yield Reference(composed, clients, **plan)
    elif kind == "shares":
        with fc.ClusterSimulator(composed, clients, workers=2, lanes=1, **plan) as sim:
            yield sim
    elif kind == "sites":
        files = [SiteFile(name=name, data=columns(i)) for i, name in enumerate(NAMES)]
        with fc.Federation(composed, files, transport="in-process", rules=Rules(quorum=1), **plan) as fed:
            yield fed
    else:
        yield fc.Simulator(composed, clients, lanes=2 if kind == "lanes" else 1, **plan)


def noisy():
    """Noise on the sum, whoever took part."""

    def finish(state, value, info, key):
        return jax.tree.map(lambda x: x + jax.random.normal(key, x.shape, x.dtype), value), state

    return fc.uplink.stage("noise", finish=finish)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_round_of_nobody_changes_nothing_but_its_number(kind, monkeypatch):
    server = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0, momentum=0.9))
    with backend(kind, fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1), server)), monkeypatch) as sim:
        before, _ = sim.run(sim.init(jax.random.key(1)), [0, 1, 2])
        after, _ = sim.run(before, np.zeros(0, np.int64))
        assert (int(before.round), int(after.round)) == (1, 2)
        assert_equal(after._replace(round=before.round), before)
        again, _ = sim.run(after, [1])  # and goes on
        assert not np.array_equal(again.params["w"], after.params["w"])


@pytest.mark.parametrize("kind", BACKENDS)
def test_noise_is_added_whoever_took_part(kind, monkeypatch):
    """That nobody took part would else be seen in the model."""
    composed = fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1)), uplink=noisy())
    with backend(kind, composed, monkeypatch) as sim:
        before = sim.init(jax.random.key(1))
        after, _ = sim.run(before, [])
    value, _ = composed.uplink.finish(
        (), jax.tree.map(jnp.zeros_like, before.params), None, fc.round.keys.server(before.key, 0, 0)
    )
    for name, noise in value.items():
        np.testing.assert_allclose(after.params[name], before.params[name] + noise, rtol=1e-6)


def stragglers(round, positions):
    """The first client does 1, 2, 3 steps in the first rounds, the others one and two more, half of the
    time."""
    return 1 + round % 3 + np.asarray(positions) * (round % 2)


def in_float64(amount, steps):
    """The model after three rounds of FedAvg in numpy; `amount` of steps of each client, or of passes over
    its data."""
    plan, ids = (
        fc.data.batches.Plan(2, epochs=9),
        fc.Clients.from_list([columns(i) for i in range(3)], ids=list(NAMES)),
    )
    w, bias = np.zeros(2), 0.0
    for r in range(3):
        ends = []
        for i, number in enumerate(amount(r, np.arange(3))):
            rows, _ = plan.batches(np.array([i]), ids.offsets, ids.addresses, r)
            v, b = w, bias
            for places in rows[: number if steps else number * -(-SIZES[i] // 2)]:
                at = places[places >= 0]
                x, y = (ids.columns[name][at].astype(np.float64) for name in "xy")
                error = x @ v + b - y
                v, b = v - 0.1 * 2 * error @ x / len(at), b - 0.1 * 2 * error.mean()
            ends.append((SIZES[i], v, b))
        w, bias = (sum(n * end[j] for n, *end in ends) / sum(SIZES) for j in range(2))
    return w, bias


@pytest.mark.parametrize("work", ["steps", "epochs"])
@pytest.mark.parametrize("kind", BACKENDS)
def test_how_much_a_client_does_is_a_function_of_the_round_and_of_who_it_is(kind, work, monkeypatch):
    composed = fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1)))
    with backend(kind, composed, monkeypatch, batch_size=2, **{work: stragglers}) as sim:
        state = sim.init(jax.random.key(1))
        for _ in range(3):
            state, _ = sim.run(state, [0, 1, 2])
    w, b = in_float64(stragglers, steps=work == "steps")
    np.testing.assert_allclose(state.params["w"], w, atol=1e-5)
    np.testing.assert_allclose(state.params["b"], b, atol=1e-5)


def test_departments_of_a_site_have_no_position_by_which_to_ask():
    composed = fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1)))
    with pytest.raises(ValueError, match="departments= needs epochs or steps that are numbers"):
        Study(composed, 2, steps=stragglers, departments=True)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_metric_of_a_report_is_summed_once_a_client(kind, monkeypatch):
    """How far each client moved, which a round of that client alone shows in the model."""
    with backend("lanes", fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1))), monkeypatch) as sim:
        before = sim.init(jax.random.key(1))
        ends = [sim.run(before, [i])[0] for i in range(3)]
    moved = [float(fc.tree.norm(fc.tree.sub(after.params, before.params))) for after in ends]
    with backend(kind, measured(), monkeypatch) as sim:
        _, seen = sim.run(sim.init(jax.random.key(1)), [0, 1, 2])
    assert float(seen["moved"]) == pytest.approx(np.average(moved, weights=SIZES), rel=1e-5)
    assert float(seen["sent"]) == 3


def measured():
    """FedAvg with a mean and a sum of what `finish` knows."""
    algorithm = fc.algorithms.fedavg(TASK, optax.sgd(0.1))
    (exchange,) = algorithm.exchanges

    def finish(message, carry, seen):
        report = exchange.client.finish(message, carry, seen)
        moved = fc.metrics.Mean(fc.tree.norm(report.update) * seen.examples, seen.examples)
        return report._replace(metrics={"moved": moved, "sent": fc.metrics.Sum(jnp.float32(1))})

    return fc.compose(
        algorithm._replace(exchanges=(exchange._replace(client=exchange.client._replace(finish=finish)),))
    )


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_server_reads_numbers_of_each_client_with_its_weight_and_position(kind, monkeypatch):
    """Of a cohort in whatever order, with empty places or none; the client that is refused weighs nothing."""
    with backend(kind, refusing(reading(), SIZES[1]), monkeypatch) as sim:
        state = sim.init(jax.random.key(1))
        if kind == "lanes":
            sim.reserve(3)
        for cohort in ([2, 0], [1, 2, 0], []):
            before, (state, _) = state, sim.run(state, np.array(cohort, np.int64))
            here = [i for i in cohort if i != 1]
            weights = [SIZES[i] if i in here else 0 for i in range(3)]
            expected = [[(i + 1) * weights[i] for i in range(3)], weights] if here else before.server.seen
            np.testing.assert_array_equal(state.server.seen, expected)


class Reading(NamedTuple):
    params: object
    seen: object  # [2, N]: of each client of the population, in the last round


def reading():
    """FedAvg whose server keeps what it reads of each client: a number of it times its weight, and the
    weight, at its position."""
    algorithm = fc.algorithms.fedavg(TASK, optax.sgd(0.1))
    (exchange,) = algorithm.exchanges
    numbers = {size: i + 1 for i, size in enumerate(SIZES)}

    def finish(message, carry, seen):
        report = exchange.client.finish(message, carry, seen)
        number = sum(jnp.where(seen.examples == size, float(i), 0.0) for size, i in numbers.items())
        return report._replace(stats={"number": number, "pair": jnp.stack([number, seen.steps])})

    def update(server, reports):
        each = reports.each
        assert each.stats["pair"].shape == (*each.weight.shape, 2)
        rows = jnp.stack([each.stats["number"] * each.weight, each.weight])
        seen = jnp.zeros((2, 3)).at[:, each.position].add(rows, mode="drop")
        return Reading(fc.tree.add(server.params, reports.value), seen)

    reads = exchange._replace(
        client=exchange.client._replace(finish=finish), broadcast=lambda server: server.params, update=update
    )
    return fc.compose(
        algorithm._replace(init=lambda params: Reading(params, jnp.zeros((2, 3))), exchanges=(reads,))
    )


def refusing(composed, size):
    """The same, but that clients of so many examples report a weight that is NaN in the first exchange, and
    only there."""
    first, *rest = composed.algorithm.exchanges

    def finish(message, carry, seen):
        report = first.client.finish(message, carry, seen)
        return report._replace(weight=jnp.where(seen.examples == size, jnp.nan, report.weight))

    changed = first._replace(client=first.client._replace(finish=finish))
    return composed._replace(algorithm=composed.algorithm._replace(exchanges=(changed, *rest)))


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("name", ["mime", "ifca"])
def test_a_client_refused_in_one_exchange_is_out_of_the_round(name, kind, monkeypatch):
    """As if it were not in the cohort, of what is averaged and of what is counted."""
    algorithm = (
        fc.algorithms.mime(TASK, optax.sgd(0.1))
        if name == "mime"
        else fc.algorithms.ifca(TASK, 2, optax.sgd(0.1))
    )
    composed = fc.compose(algorithm)
    with backend("one lane", composed, monkeypatch) as sim:
        expected, without = sim.run(sim.init(jax.random.key(1)), [0, 2])
    with backend(kind, refusing(composed, SIZES[1]), monkeypatch) as sim:
        state, seen = sim.run(sim.init(jax.random.key(1)), [0, 1, 2])
    assert_close(state._replace(clients=expected.clients), expected)
    assert {name: float(seen[name]) for name in without if name != "refused"} == pytest.approx(
        {name: float(without[name]) for name in without if name != "refused"}, rel=1e-5
    )
    # a site sees by itself that its numbers are no good
    assert float(seen["missing" if kind == "sites" else "refused"]) == 1
    assert (float(seen["clients"]), float(seen["examples"])) == (2, SIZES[0] + SIZES[2])


def stacked():
    """FedAvg whose server is given every report, and averages them itself."""
    algorithm = fc.algorithms.fedavg(TASK, optax.sgd(0.1))
    (exchange,) = algorithm.exchanges

    def update(server, reports):
        share = reports.each.weight / jnp.maximum(reports.weight, 1)
        value = jax.tree.map(lambda x: jnp.tensordot(share, x, axes=1), reports.value)
        return exchange.update(server, reports._replace(value=value))

    return fc.compose(algorithm._replace(exchanges=(exchange._replace(update=update, reports="all"),)))


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_server_that_needs_every_report_has_them_with_their_weights(kind, monkeypatch):
    """A mean of its own is that of the aggregator."""
    with backend("one lane", fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1))), monkeypatch) as sim:
        before = sim.init(jax.random.key(1))
        expected, _ = sim.run(before, [2, 0])
    composed = stacked()
    assert composed.aggregator.name == "stack"
    with backend(kind, composed, monkeypatch) as sim:
        if kind == "lanes":
            sim.reserve(3)
        state = sim.init(jax.random.key(1))
        after, _ = sim.run(state, [2, 0])
        nobody, _ = sim.run(after, [])
    assert_close(after._replace(clients=expected.clients), expected)
    assert_equal(nobody._replace(round=after.round), after)


class Models(NamedTuple):
    """Two models, one stacked on the other."""

    params: object


def in_slots():
    """FedAvg with two models: a client trains that of its slot, which is 1 where it has five examples."""
    algorithm = fc.algorithms.fedavg(TASK, optax.sgd(0.1))
    (exchange,) = algorithm.exchanges
    client = exchange.client

    def slot(examples):
        return (examples == SIZES[0]).astype(jnp.int32)

    def finish(message, carry, seen):
        mine = slot(seen.examples)
        return client.finish(message, carry, seen)._replace(slot=mine)

    def update(server, reports):
        return Models(fc.tree.add(server.params, reports.value))

    def twice(params):
        return Models(jax.tree.map(lambda x: jnp.stack([x, x]), params))

    trains = exchange._replace(
        broadcast=lambda server: jax.tree.map(lambda x: x[0], server.params),
        client=client._replace(finish=finish),
        update=update,
        slots=2,
    )
    return algorithm._replace(init=twice, exchanges=(trains,))


@pytest.mark.parametrize("kind", BACKENDS)
def test_reports_meet_in_the_slot_that_each_names(kind, monkeypatch):
    """As rounds of the clients of each slot by themselves."""
    with backend("one lane", fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1))), monkeypatch) as sim:
        before = sim.init(jax.random.key(1))
        ends = [sim.run(before, cohort)[0].params for cohort in ([1, 2], [0])]
    with backend(kind, fc.compose(in_slots()), monkeypatch) as sim:
        start = sim.init(jax.random.key(1))
        after, _ = sim.run(start, [2, 0, 1])
        alone, _ = sim.run(start, [1])
    for name, x in after.params.items():
        np.testing.assert_allclose(x, [end[name] for end in ends], atol=1e-6)
        # of a slot that nobody names
        np.testing.assert_array_equal(alone.params[name][1], start.params[name][1])


class Rows(NamedTuple):
    """A model, and a number for each client."""

    params: object
    rows: object  # [N]


def addressed():
    """FedAvg whose clients multiply their change by a number that the server has for each of them alone."""
    algorithm = fc.algorithms.fedavg(TASK, optax.sgd(0.1))
    (exchange,) = algorithm.exchanges
    client = exchange.client

    def finish(told, carry, seen):
        report = client.finish(told.message, carry, seen)
        return report._replace(update=fc.tree.scale(told.mine["factor"], report.update))

    sends = exchange._replace(
        broadcast=lambda server: server.params,
        client=client._replace(
            begin=lambda told, own, key: client.begin(told.message, own, key),
            step=lambda told, carry, batch, key: client.step(told.message, carry, batch, key),
            finish=finish,
        ),
        update=lambda server, reports: Rows(fc.tree.add(server.params, reports.value), server.rows + 1),
        address=lambda server, clients: {"factor": server.rows.at[clients].get(mode="clip")},
    )
    return algorithm._replace(init=lambda params: Rows(params, jnp.arange(3.0)), exchanges=(sends,))


@pytest.mark.parametrize("kind", BACKENDS)
def test_each_client_is_told_what_is_for_it_alone(kind, monkeypatch):
    """In whatever order they are, with empty places or none; in the second round the numbers are larger by
    one."""
    with backend("one lane", fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1))), monkeypatch) as sim:
        before = expected = sim.init(jax.random.key(1))
        for factors in ({2: 2.0, 0: 0.0}, {1: 2.0, 2: 3.0, 0: 1.0}):
            ends, total = (
                {i: sim.run(expected, [i])[0].params for i in factors},
                sum(SIZES[i] for i in factors),
            )
            moved = {
                i: fc.tree.scale(f * SIZES[i] / total, fc.tree.sub(ends[i], expected.params))
                for i, f in factors.items()
            }
            params = jax.tree.map(lambda x, *changes: x + sum(changes), expected.params, *moved.values())
            expected = expected._replace(
                server=expected.server._replace(params=params), round=expected.round + 1
            )
    with backend(kind, fc.compose(addressed()), monkeypatch) as sim:
        if kind == "lanes":
            sim.reserve(3)
        state = sim.init(jax.random.key(1), before.params)
        for cohort in ([2, 0], [1, 2, 0]):
            state, _ = sim.run(state, cohort)
    for name, x in state.params.items():
        np.testing.assert_allclose(x, expected.params[name], atol=1e-6)
