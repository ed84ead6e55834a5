"""The contracts that every piece of the zoo passes: the engine against plain loops, and against itself run
another way.

jit = eager; traced once over rounds; the state keeps its structure; one lane = many = plain loops; one device
= eight; many rounds in one dispatch = one by one; the order of clients, the room for more of them, and
padding change nothing; saved and restored in the middle = uninterrupted, bit for bit. The cohorts hold an
empty client, one with a single example, and one larger than all others."""

import jax
import numpy as np
import pytest

from fedjax_core import Clients, Simulator, metrics, uplink
from fedjax_core.lanes import exchange
from fedjax_core.loops import Loops as Reference
from fedjax_core.run.checkpoint import Checkpoints
from tests.contracts import (
    BATCH,
    BRIEF,
    BRIEF_KINDS,
    COHORTS,
    KINDS,
    assert_close,
    assert_equal,
    built,
    by_plain_loops,
    check_aggregator,
    check_stage,
    entries,
    entries_of,
    pieces,
    run,
    simulator,
    usual,
)
from tests.zoo import AGGREGATORS, LOSSY, ROBUST, SIZES, STAGES, ZOO, clients, lossy


@pytest.mark.parametrize("name", [*STAGES, *(pytest.param(name, marks=pytest.mark.slow) for name in LOSSY)])
def test_a_stage_by_itself(name):
    check_stage({**STAGES, **LOSSY}[name]())


def test_a_chain_by_itself():
    check_stage(uplink.chain())
    check_stage(lossy())


@pytest.mark.parametrize(
    "name", [*AGGREGATORS, *(pytest.param(name, marks=pytest.mark.slow) for name in ROBUST)]
)
def test_an_aggregator_by_itself(name):
    check_aggregator({**AGGREGATORS, **ROBUST}[name]())


@entries
def test_three_lanes_are_plain_loops(name):
    assert_close(usual(name)[1], by_plain_loops(name)[0])


@entries_of(BRIEF_KINDS, slow=BRIEF)
def test_two_small_rounds_in_two_lanes_are_plain_loops(name):
    """A client of one example and none, one of several steps, and one who is there for the first time in the
    second round."""
    cohorts, settings = ([1, 0, 2], [5, 0]), {"batch_size": BATCH, "epochs": 1}
    state, seen = run(Simulator(*built(name), lanes=2, **settings), cohorts)
    expected, sums = run(Reference(*built(name), **settings), cohorts)
    assert_close(state, expected)
    assert metrics.summary(seen[-1]) == pytest.approx(metrics.summary(sums[-1]), rel=1e-5)


@entries
def test_metrics_are_the_sums_of_plain_loops(name):
    _, _, got = usual(name)
    _, expected = by_plain_loops(name)
    for now, sums in zip(got, expected, strict=True):
        assert metrics.summary(now) == pytest.approx(metrics.summary(sums), rel=1e-5)


# default: 3, 64, and 8 on as many devices
@pytest.mark.parametrize("lanes", [1, pytest.param(8, marks=pytest.mark.slow)])
@entries_of(["fedavg"], slow=ZOO)
def test_any_number_of_lanes(name, lanes):
    state, _ = run(simulator(name, lanes=lanes))
    assert_close(state, usual(name)[1])


@entries_of([name for name in KINDS if name != "secure"], slow=ZOO)
def test_64_lanes_with_the_cohort_in_another_order_and_room_for_more(name):
    sim = simulator(name, lanes=64)
    sim.reserve(len(SIZES))
    assert_close(run(sim, [cohort[::-1] for cohort in COHORTS])[0], usual(name)[1])


@pieces
def test_eight_devices(name):
    sim = simulator(name, lanes=8, mesh=jax.make_mesh((8,), ("lanes",)))
    state, seen = run(sim)
    assert_close(state, usual(name)[1])
    assert metrics.summary(seen[-1]) == pytest.approx(metrics.summary(usual(name)[2][-1]), rel=1e-5)
    assert sim.traces == 1


@entries
def test_one_trace_for_all_rounds_and_the_state_keeps_its_shape(name):
    sim, state, _ = usual(name)
    assert sim.traces == 1
    fresh = jax.eval_shape(lambda: sim.round.init(jax.random.key(0), len(SIZES)))
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


@entries_of(["scaffold, clip, feedback"], slow=ZOO)
def test_many_rounds_in_one_dispatch_are_the_same_bit_for_bit(name):
    _, expected, one_by_one = usual(name)
    again = simulator(name)
    state, seen = again.run_many(again.init(jax.random.key(1)), COHORTS)
    assert_equal(state, expected)
    for metric, stacked in seen.items():
        assert np.asarray(stacked.total).tolist() == [float(found[metric].total) for found in one_by_one]


@pieces
def test_restored_in_the_middle_is_bit_for_bit_uninterrupted(name, tmp_path):
    sim, expected, _ = usual(name)
    middle, _ = run(sim, COHORTS[:2])
    with Checkpoints(tmp_path) as saved:
        saved.save(2, middle, {})
    with Checkpoints(tmp_path) as saved:
        restored = saved.newest().place(sim.init(jax.random.key(0)))
    assert_equal(restored, middle)
    assert_equal(run(sim, COHORTS[2:], restored)[0], expected)


@entries_of([name for name in KINDS if name != "secure"], slow=ZOO)
def test_jit_is_eager(name):
    # a client of one example and one of a single batch: an eager step takes a hundred times a compiled one
    few = [
        1,
        4,
    ]
    assert SIZES[1] == 1 and SIZES[4] == BATCH
    compiled, _ = run(Reference(*built(name), batch_size=BATCH, epochs=1), [few])
    with jax.disable_jit():
        eager, _ = run(Reference(*built(name), jit=False, batch_size=BATCH, epochs=1), [few])
    assert_close(compiled, eager)


@entries_of(["ifca", "linen dropout"], slow=["fedavg", "scaffold"])
def test_order_of_the_population_changes_nothing(name):
    """Clients are who they say, wherever they stand: the same ids in another order end at the same model."""
    ids = np.random.default_rng(9).permutation(len(SIZES)).tolist()
    where = np.argsort(ids)
    sim = Simulator(built(name)[0], clients(ZOO[name].data, ids=ids), batch_size=BATCH, epochs=2, lanes=3)
    state, _ = run(sim, [where[cohort] for cohort in COHORTS])
    kept = jax.tree.map(lambda x: x[where], state.clients)
    assert_close(state._replace(clients=kept), usual(name)[1])


@pytest.mark.parametrize("lanes", [pytest.param(1, marks=pytest.mark.slow), 3])
@entries_of(["scaffold, clip, feedback", "trimmed mean"], slow=["fedavg, momentum", "ifca"])
def test_lanes_that_begin_and_end_one_by_one_change_nothing(name, lanes, monkeypatch):
    """As those of a large model do."""
    monkeypatch.setattr(exchange, "_LARGE", 0)
    assert_close(run(simulator(name, lanes=lanes))[0], by_plain_loops(name)[0])


@entries_of(["mime", "cox"], slow=["fedavg"])
def test_a_larger_batch_only_pads(name):
    """Batches larger than any client hold the same examples, however much padding comes with them."""
    results = [
        run(simulator(name, batch_size=b, epochs=1), COHORTS[:2])[0] for b in (max(SIZES), 3 * max(SIZES))
    ]
    assert_close(*results)


def test_a_client_drawn_twice_counts_twice():
    from fedjax_core import Cohort

    sim = simulator("fedavg")
    cohort = Cohort(np.array([3, 5]), np.array([2, 1]))
    state, _ = sim.run(sim.init(jax.random.key(1)), cohort)
    loops = Reference(*built("fedavg"), batch_size=BATCH, epochs=2)
    assert_close(state, loops.run(loops.init(jax.random.key(1)), cohort)[0])


@entries_of(["fedavg", "trimmed mean", "secure"], slow=["scaffold", "quantize", "mime"])
def test_a_client_whose_numbers_overflow_is_refused_and_counted(name):
    composed, good = built(name)
    columns = [dict(good[i]) for i in range(len(good))]
    # from which training diverges
    columns[5]["x"] = np.random.default_rng(0).choice(np.float32([1e18, -1e18]), columns[5]["x"].shape)
    bad = Clients.from_list(columns)
    sim = Simulator(composed, bad, batch_size=BATCH, epochs=2, lanes=3)
    state, seen = sim.run(sim.init(jax.random.key(1)), [3, 5, 7])
    assert float(seen["refused"]) >= 1
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state._replace(key=())))
    assert np.isfinite(float(seen["loss"]))


def test_a_round_of_empty_clients_leaves_the_model_alone():
    sim = simulator("fedavg")
    before = sim.init(jax.random.key(1))
    after, seen = sim.run(before, [2])
    assert_equal(after._replace(round=before.round), before)
    assert float(seen["examples"]) == 0 and np.isnan(float(seen["loss"]))


def test_steps_go_on_across_rounds():
    """Five rounds of three steps are the plain loops' too, with clients whose epoch is shorter and longer
    than that."""
    settings = {"batch_size": BATCH, "steps": 3}
    state, _ = run(Simulator(*built("fedavg"), lanes=3, **settings))
    assert_close(state, run(Reference(*built("fedavg"), **settings))[0])


def test_explicit_batches():
    order = np.random.default_rng(0).integers(0, 4, (2, 6, BATCH))
    data = clients(sizes=(4, 4))
    settings = {"batch_size": BATCH, "steps": 3, "order": order}
    state, _ = run(Simulator(built("fedavg")[0], data, lanes=1, **settings), [[0, 1], [0, 1]])
    assert_close(state, run(Reference(built("fedavg")[0], data, **settings), [[0, 1], [0, 1]])[0])
