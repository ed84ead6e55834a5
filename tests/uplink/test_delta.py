"""Differences from what clients have, against loops in NumPy in which each client's memory is an array."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import algorithms as of
from fedjax_core import uplink
from fedjax_core.sites.site_file import SiteFile
from tests.contracts import assert_close
from tests.quadratic import OPTIMUM, START2, UNEQUAL, UNEVEN, grad, on_unequal

LR, T, N = 0.1, 3, 3
SGD = optax.sgd(LR)
HALF = uplink.topk(0.5)  # one of the two coordinates


def largest(change):
    return np.where(np.arange(2) == np.abs(change).argmax(), change, 0)


def local(i, w):
    for _ in range(T):
        w = w - LR * grad(i, w)
    return w


ROUNDS = ([0, 1, 2], [0, 1, 2], [1], [2, 0], [0, 1, 2], [0, 1, 2], [2])


def streamed():
    """All clients have `known` for certain; whoever takes part in a round has what was sent in it, too."""
    x, known = START2, START2
    for cohort in ROUNDS:
        sent = known + largest(x - known)
        x = x + np.mean([local(i, sent) - sent for i in cohort], axis=0)
        known = sent if len(cohort) == N else known
    return x, known


def remembered():
    x, memory = START2, np.tile(START2, (N, 1))
    for cohort in ROUNDS:
        for i in cohort:
            memory[i] = memory[i] + largest(x - memory[i])
        x = x + np.mean([local(i, memory[i]) - memory[i] for i in cohort], axis=0)
    return x, memory


@pytest.mark.proves("delta", by="independent implementation: the memories of both ends in NumPy")
@pytest.mark.parametrize("per_client", [False, True], ids=["one stream", "a client each"])
def test_rounds_are_those_of_memories_kept_by_hand(per_client):
    downlink = uplink.delta(HALF, N, per_client)
    model, state = on_unequal(of.fedavg(UNEVEN, SGD), ROUNDS, downlink=downlink)
    expected, memory = remembered() if per_client else streamed()
    assert model == pytest.approx(expected, abs=3e-6)
    has = state.server.memory[0] if per_client else state.server.memory[0].message
    np.testing.assert_allclose(has["w"], memory, atol=3e-6)
    if per_client:  # both ends have the same
        np.testing.assert_allclose(state.clients.own.memory[0]["w"], has["w"], atol=1e-7)


@pytest.mark.proves("delta", by="closed form: the optimum of a quadratic where top-k alone stalls")
def test_a_biased_stage_reaches_the_optimum_that_it_misses_alone():
    def end(downlink):
        sim = fc.Simulator(
            fc.compose(of.scaffold(UNEVEN, LR, N), downlink=downlink),
            UNEQUAL,
            batch_size=1,
            epochs=T,
            lanes=3,
        )
        state, _ = sim.run_many(sim.init(jax.random.key(0)), [[0, 1, 2]] * 300)
        return np.asarray(state.params["w"], np.float64)

    for per_client in (False, True):
        assert end(uplink.delta(HALF, N, per_client)) == pytest.approx(OPTIMUM, abs=1e-5)
    assert np.linalg.norm(end(HALF) - OPTIMUM) > 0.1


@pytest.mark.parametrize("per_client", [False, True], ids=["one stream", "a client each"])
def test_lanes_find_what_loops_do_and_bits_are_those_of_the_difference(per_client):
    task = fc.models.mlp(features=4, hidden=(16,), classes=3)
    draw = np.random.default_rng(0)
    clients = fc.Clients.from_list(
        [{"x": draw.normal(size=(n, 4)).astype(np.float32), "y": draw.integers(0, 3, n).astype(np.int32)} for n in (4, 7, 3)]
    )  # fmt: skip
    algorithm = of.mimelite(task, optax.sgd(0.1, momentum=0.5))
    composed = fc.compose(algorithm, downlink=uplink.delta(uplink.topk(0.1), N, per_client))
    sim, loops = (
        fc.Simulator(composed, clients, batch_size=4, epochs=1, lanes=2),
        fc.Loops(composed, clients, batch_size=4, epochs=1),
    )
    state, expected = sim.init(jax.random.key(1)), loops.init(jax.random.key(1))
    server = algorithm.init(task.init(jax.random.key(0)))
    each = [uplink.bits(uplink.topk(0.1), one.broadcast(server)) for one in algorithm.exchanges]
    if not per_client:
        each += [64, 64]  # which message of an exchange it is, and from which one it differs
    for cohort in ROUNDS[1:4]:
        state, metrics = sim.run(state, cohort)
        expected, same = loops.run(expected, cohort)
        assert float(metrics["refused"].total) == 0
        assert float(metrics["bits_down"].total) == float(same["bits_down"].total)
        assert float(metrics["bits_down"].total) == len(cohort) * sum(each)
    assert_close(state, expected)


def test_a_stream_that_no_site_misses_ends_where_lanes_do():
    composed = fc.compose(of.fedavg(UNEVEN, SGD), downlink=uplink.delta(uplink.quantize(bits=4), N))
    sim = fc.Simulator(composed, UNEQUAL, batch_size=1, epochs=T, lanes=1)
    expected = sim.init(jax.random.key(1))
    sites = [SiteFile(name=f"site{i}", data=UNEQUAL[i]) for i in range(N)]
    with fc.Federation(composed, sites, batch_size=1, epochs=T, transport="in-process") as fed:
        state = fed.init(jax.random.key(1))
        for cohort in ROUNDS:
            state, _ = fed.run(state, cohort)
            expected, _ = sim.run(expected, cohort)
    np.testing.assert_allclose(state.params["w"], expected.params["w"], atol=1e-6)
    assert int(state.server.memory[0].number) == 6


def test_a_message_in_16_bits_is_kept_in_32_and_single_numbers_are_sent_as_they_are():
    narrow = UNEVEN._replace(init=lambda key: {"w": jnp.array(START2, jnp.bfloat16)})
    composed = fc.compose(
        of.fedprox(narrow, mu=lambda round: 0.5 * round, local=SGD), downlink=uplink.delta(HALF, N)
    )
    state = composed.init(jax.random.key(0), N)
    (exchange,) = composed.algorithm.exchanges
    own = jax.tree.map(lambda x: x[0], state.clients.own)
    sent = composed.listen(0, composed.broadcast(0, state)[0])
    working = exchange.client.begin(sent, own, jax.random.key(1))
    assert working.memory[0].last.inner["w"].dtype == jnp.float32
    assert working.inner.params["w"].dtype == jnp.bfloat16 and sent.rest.round == 0


def test_newcomers_are_given_the_message_as_it_is():
    algorithm = of.ditto(UNEVEN, 0.1, SGD)
    plain, coded = (fc.compose(algorithm, **more) for more in ({}, {"downlink": uplink.delta(HALF, N)}))
    made = []
    for composed in (plain, coded):
        loops = fc.Loops(composed, UNEQUAL, batch_size=1, epochs=T)
        state, _ = loops.run(loops.init(jax.random.key(0)), [0, 1, 2])  # a first difference is zero
        made.append(fc.newcomers(algorithm, state, UNEQUAL, batch_size=1, epochs=T))
        assert set(loops.evaluate(state).pooled) >= {"loss"}
    np.testing.assert_allclose(made[0]["w"], made[1]["w"], atol=1e-6)


MISTAKES = {
    "population=3, and delta.topk. with population=4": lambda: fc.compose(
        of.scaffold(UNEVEN, LR, 3), downlink=uplink.delta(HALF, 4)
    ),
    "exchange 0 of qffl no report leaves a client": lambda: fc.compose(
        of.qffl(UNEVEN, LR, q=1.0), downlink=uplink.delta(HALF, 3)
    ),
    "feedback.topk. keeps state of its own": lambda: fc.compose(
        of.fedavg(UNEVEN, SGD), downlink=uplink.delta(uplink.feedback(HALF), 3)
    ),
    "has to know whose reports count": lambda: fc.compose(
        of.fedavg(UNEVEN, SGD),
        uplink=uplink.secure(bound=1.0),
        aggregator=fc.aggregators.total(),
        downlink=uplink.delta(HALF, 3, per_client=True),
    ),
    "needs the population": lambda: uplink.delta(HALF, 0),
    "hides or protects reports": lambda: uplink.delta(uplink.secure(bound=1.0), 3),
    "delta.topk. sends differences from what clients received before": lambda: fc.AsynchronousSimulator(
        fc.compose(of.fedavg(UNEVEN, SGD), downlink=uplink.delta(HALF, 3)), UNEQUAL, fc.Buffer(2), batch_size=1, epochs=1
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_what_has_no_memory_is_refused_with_the_way_out(message):
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()
    with pytest.raises(TypeError, match="codes by a stage, got int"):
        uplink.delta(4, 3)


def test_clients_drawn_twice_are_refused_where_reports_are_counted():
    """Four reports of two clients are none of the other two, who would lack the next difference for good."""
    twice = fc.Cohort(np.array([0, 1]), np.array([2, 1]))
    for backend, per_client in ((fc.Loops, False), (fc.Simulator, False), (fc.Simulator, True)):
        composed = fc.compose(of.fedavg(UNEVEN, SGD), downlink=uplink.delta(HALF, N, per_client))
        sim = backend(composed, UNEQUAL, batch_size=1)
        state = sim.init(jax.random.key(0))
        if per_client:
            sim.run(state, twice)
        else:
            with pytest.raises(
                ValueError, match=r"drawn 2 times, and delta\(topk\) in one stream .* per_client=True"
            ):
                sim.run(state, twice)
