"""Shares of a cohort, worked through apart and merged, are the cohort: for every piece of the zoo, without
Ray."""

import cloudpickle
import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.client_state import Carried
from fedjax_core.client_state.record_files import FILES
from fedjax_core.cluster import pool
from fedjax_core.cluster.shard import Broadcast, Worker, for_workers, from_host, to_host
from fedjax_core.data.batches import Plan
from fedjax_core.xla import tuning_cache
from tests.cluster.in_process import InProcess
from tests.contracts import BATCH, COHORTS, assert_close, assert_equal, built, entries_of, run, usual
from tests.zoo import ZOO


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    monkeypatch.setattr(pool, "WorkerPool", InProcess)
    monkeypatch.setattr(pool, "connect", lambda *arguments: None)
    monkeypatch.setattr(pool, "disconnect", lambda: None)


def cluster(name: str, **settings) -> fc.ClusterSimulator:
    composed, data = built(name)
    return fc.ClusterSimulator(composed, data, **{"batch_size": BATCH, "epochs": 2, "lanes": 3, **settings})


# Three for how a round can be; the rest, of which some take 5 to 7 s to compile, with --slow.
FAST = ("mime, clip, feedback", "trimmed mean", "fednova, clip")


@entries_of(FAST, slow=ZOO)
def test_two_shares_are_the_whole_cohort(name):
    sim = cluster(name)
    state, seen = run(sim)
    _, expected, metrics = usual(name)
    assert_close(state, expected)
    assert fc.metrics.summary(seen[-1]) == pytest.approx(fc.metrics.summary(metrics[-1]), rel=1e-5)
    assert sim.traces == 1


@pytest.mark.parametrize("shares", [pytest.param(1, marks=pytest.mark.slow), 5])
@entries_of(["trimmed mean"], slow=["scaffold, clip, feedback", "ifca"])
def test_any_number_of_shares(name, shares):
    assert_close(run(cluster(name, shares=shares))[0], usual(name)[1])


@entries_of(["ifca"], slow=["mime, clip, feedback"])
def test_streamed_examples_are_the_same(name):
    sim = cluster(name, stream=True)
    assert_close(run(sim)[0], usual(name)[1])
    assert sim.traces == 1


def test_a_message_is_put_once_for_all_shares(monkeypatch):
    put = []
    monkeypatch.setattr(
        InProcess,
        "put",
        lambda self, broadcast, inner=InProcess.put: put.append(broadcast.exchange) or inner(self, broadcast),
    )
    sim = cluster("mime, clip, feedback")
    state, _ = sim.run(sim.init(jax.random.key(0)), COHORTS[0])  # which measures, with a message of its own
    put.clear()
    sim.run(state, COHORTS[0])
    assert put == [0, 1]


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bit():
    one, three = (run(cluster("scaffold, clip, feedback", workers=w, shares=3))[0] for w in (1, 3))
    assert_equal(one, three)


def test_many_rounds_are_one_by_one_bit_for_bit():
    sim = cluster("scaffold, clip, feedback")
    state, seen = sim.run_many(sim.init(jax.random.key(1)), COHORTS)
    expected, one_by_one = run(cluster("scaffold, clip, feedback"))
    assert_equal(state, expected)
    assert np.asarray(seen["loss"].total).tolist() == [float(found["loss"].total) for found in one_by_one]


def whole(sim, state):
    """The state with all rows in it."""
    return state._replace(
        clients=jax.tree.map(jax.numpy.asarray, state.clients.read(np.arange(len(sim.clients))))
    )


@entries_of(["scaffold, clip, feedback"], slow=["mime, clip, feedback", "ifca"])
def test_client_state_on_the_host_or_in_files_of_the_workers(name, tmp_path):
    for tier in ("host", tmp_path / "rows"):
        sim = cluster(name, client_state=tier)
        state, _ = run(sim)
        _, expected, _ = usual(name)
        assert_close(whole(sim, state), expected)
        moved = sim.meter.report()["client state MB/round"]
        assert (moved == 0) == (tier != "host")
    assert_equal(whole(sim, state), run(cluster(name))[0])
    with pytest.raises(ValueError, match="a state goes forward only"):
        sim.run(state._replace(round=state.round - 1), [0])


def test_a_folder_for_clients_who_keep_nothing(tmp_path):
    sim = cluster("fedavg", client_state=tmp_path / "rows")
    assert_close(run(sim)[0]._replace(clients=usual("fedavg")[1].clients), usual("fedavg")[1])
    assert not list((tmp_path / "rows").glob("*"))


def test_workers_who_see_another_folder_say_so(tmp_path, monkeypatch):
    sim = cluster("scaffold", client_state=tmp_path / "rows")
    state, _ = sim.run(sim.init(jax.random.key(0)), COHORTS[0])
    (tmp_path / "elsewhere").mkdir()
    for f in range(FILES):
        (tmp_path / "elsewhere" / f"rows_{f}.bin").touch()
    monkeypatch.setattr(state.clients, "folder", tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=r"The driver and all workers must see one folder under that path"):
        sim.run(state, COHORTS[0])
    monkeypatch.undo()
    sim.run(state, COHORTS[0])  # the state before is still good


@pytest.mark.parametrize("cohort", [[2], [3], [0, 2]])
def test_cohorts_with_less_work_than_shares(cohort):
    sim, loop = (
        cluster("scaffold", workers=3),
        fc.Simulator(*built("scaffold"), batch_size=BATCH, epochs=2, lanes=3),
    )
    (state, seen), (expected, metrics) = (s.run(s.init(jax.random.key(1)), cohort) for s in (sim, loop))
    assert_close(state, expected)
    assert fc.metrics.summary(seen) == pytest.approx(fc.metrics.summary(metrics), rel=1e-5, nan_ok=True)


def test_a_client_drawn_twice_counts_twice():
    cohort = fc.Cohort(np.array([3, 5]), np.array([2, 1]))
    sim, loop = cluster("fedavg"), fc.Simulator(*built("fedavg"), batch_size=BATCH, epochs=2, lanes=3)
    assert_close(*(s.run(s.init(jax.random.key(1)), cohort)[0] for s in (sim, loop)))


def test_a_client_whose_numbers_overflow_is_refused_and_counted():
    composed, good = built("scaffold")
    columns = [dict(good[i]) for i in range(len(good))]
    # from which training diverges
    columns[5]["x"] = np.random.default_rng(0).choice(np.float32([1e18, -1e18]), columns[5]["x"].shape)
    sim = fc.ClusterSimulator(composed, fc.Clients.from_list(columns), batch_size=BATCH, epochs=2, lanes=3)
    state, seen = sim.run(sim.init(jax.random.key(1)), [3, 5, 7])
    assert float(seen["refused"]) == 1
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state._replace(key=())))


def test_the_state_before_is_still_good_unless_it_is_donated():
    sim = cluster("scaffold")
    first = sim.init(jax.random.key(1))
    one, two = (sim.run(first, COHORTS[0])[0] for _ in range(2))
    assert_equal(one, two)
    assert_equal(sim.run(first, COHORTS[0], donate=True)[0], one)


def test_a_share_done_again_is_the_same_bit_for_bit():
    sim = cluster("mime, clip, feedback")
    composed, data = built("mime, clip, feedback")
    state = sim.init(jax.random.key(1))
    sim.reserve(9)
    share = sim._deal(COHORTS[0], np.ones(9, np.int32))[1]
    share = share._replace(kept=Carried(jax.tree.map(lambda x: np.asarray(x[share.clients]), state.clients)))
    sent, _ = composed.broadcast(0, state)
    told = to_host(
        Broadcast(
            0, sent, state.uplink[0], np.int32(0), state.key, sim._among(COHORTS[0], np.ones(9, bool)), {}
        )
    )
    one, two = (
        Worker(composed, data, Plan(BATCH, epochs=2), streamed=False).run(told, share) for _ in range(2)
    )
    for x, y in zip(jax.tree.leaves(one.collected), jax.tree.leaves(two.collected), strict=True):
        assert x.tobytes() == y.tobytes()
    assert one.work == two.work and one.work.clients == len(share.clients)


def test_a_larger_cohort_makes_room(caplog):
    sim = cluster("fedavg")
    state, _ = sim.run(sim.init(jax.random.key(1)), [3])
    run(sim, COHORTS[1:], state)
    assert sim.traces == 2 and "call reserve(9) before the first round" in caplog.text


def test_evaluation_is_that_of_the_simulator():
    for name in ("fedavg", "ifca"):
        sim, (loop, state, _) = cluster(name), usual(name)
        assert sim.evaluate(state).pooled == loop.evaluate(state).pooled


def test_lanes_are_chosen_by_a_worker_and_kept(monkeypatch):
    sim = cluster("fedavg", lanes="auto")
    monkeypatch.setattr(sim._pool, "choose_lanes", lambda most, measured: (most, {"how many?": most}))
    assert sim.settings["lanes"] == 6
    assert tuning_cache.entries()["how many?"] == 6  # for the checkpoints
    monkeypatch.setattr(sim._pool, "choose_lanes", lambda most, measured: pytest.fail("chosen again"))
    assert sim.lanes == 6


def test_what_a_worker_measures_all_workers_go_by(monkeypatch):
    """The first worker measures for all; what it found is known here, and told with the next exchange."""
    monkeypatch.setattr(tuning_cache, "_entries", {})
    sim = cluster("fedavg")
    trace, known = sim._pool.members[0].measure, []

    def measure(broadcast, share):
        return {**trace(broadcast, share), "which rule?": "patches"}

    def do(broadcast, share):
        known.append(dict(broadcast.measured))
        return work(broadcast, share)

    work = sim._pool.members[1].run
    monkeypatch.setattr(sim._pool.members[0], "measure", measure)
    monkeypatch.setattr(sim._pool.members[1], "run", do)
    run(sim, COHORTS[:2])
    assert [answers["which rule?"] for answers in known] == ["patches", "patches"]
    assert sim.traces == 1


def test_keys_travel():
    sent = {"key": jax.random.key(7), "x": jax.numpy.ones(2)}
    found = from_host(to_host(sent))
    assert found["key"] == sent["key"] and isinstance(found["x"], np.ndarray)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers must be a whole number of at least 1, got 0"),
        ({"workers": 1.5}, "workers must be a whole number of at least 1, got 1.5"),
        ({"shares": 0}, "shares must be a whole number of at least 1, got 0"),
        ({"lanes": "many"}, "lanes must be"),
        ({"retries": -1}, "retries must be a whole number of at least 0, got -1"),
        ({"cpus_per_worker": 0}, "cpus_per_worker must be above 0, got 0"),
        ({"hang_seconds": 0}, "hang_seconds must be above 0, got 0"),
        ({"gpus_per_worker": 2}, "for more GPUs use more workers"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        cluster("fedavg", **settings)


def test_what_is_no_round_and_no_clients_is_refused():
    composed, data = built("fedavg")
    with pytest.raises(TypeError, match=r"make one with fc.compose"):
        fc.ClusterSimulator(composed.algorithm, data, batch_size=4)
    with pytest.raises(TypeError, match=r"fc.Clients.from_list"):
        fc.ClusterSimulator(composed, [1, 2], batch_size=4)
    with pytest.raises(ValueError, match="at least one cohort"):
        cluster("fedavg").run_many(None, [])
    with pytest.raises(ValueError, match="workers must be"):
        cluster("fedavg").resize(0)


def test_a_closed_one_says_so():
    with cluster("fedavg") as sim:
        state = sim.init(jax.random.key(0))
    with pytest.raises(RuntimeError, match="is closed"):
        sim.run(state, [0])
    sim.close()


def test_compiled_functions_of_a_task_reach_workers():
    task = fc.models.linear(features=3)
    compiled = task._replace(init=jax.jit(task.init), loss=jax.jit(task.loss))
    sent = []
    for one in (task, compiled):
        composed = for_workers(fc.compose(fc.algorithms.fedavg(one, optax.sgd(0.1))))
        algorithm = cloudpickle.loads(cloudpickle.dumps(composed)).algorithm  # as another process gets it
        key = jax.random.key(0)
        sent.append((jax.eval_shape(algorithm.init_params, key), jax.eval_shape(algorithm.task.init, key)))
        jax.tree.map(np.testing.assert_array_equal, algorithm.init_params(key), task.init(key))
    assert sent[0] == sent[1]
