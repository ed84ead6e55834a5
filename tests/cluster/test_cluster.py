"""The cluster simulator on real Ray workers: equal to lanes, and to itself whatever happens to a worker."""

import os
import pickle
import signal
import threading
import time

import jax
import numpy as np
import optax
import pytest
from ray.experimental import get_object_locations

import fedjax_core as fc
from fedjax_core.cluster import pool, simulator
from tests.contracts import BATCH, assert_close, assert_equal, built, run, usual
from tests.run import small
from tests.zoo import ZOO, clients, round_of

pytestmark = pytest.mark.usefixtures("ray_here")

KEPT = "scaffold, clip, feedback"  # something for the server, for every stage and for every client to keep
FEW = ["fedavg", KEPT, "mime", "ifca", "trimmed mean"]


def cluster(name: str, **settings) -> fc.ClusterSimulator:
    composed, data = built(name)
    return fc.ClusterSimulator(
        composed, data, **{"batch_size": BATCH, "epochs": 2, "lanes": 3, "cpus_per_worker": 0.5, **settings}
    )


@pytest.mark.parametrize(
    "name", [KEPT, *(pytest.param(name, marks=pytest.mark.slow) for name in ZOO if name != KEPT)]
)
def test_two_workers_are_the_simulator(name):
    with cluster(name) as sim:
        state, seen = run(sim)
        assert_close(state, usual(name)[1])
        assert fc.metrics.summary(seen[-1]) == pytest.approx(fc.metrics.summary(usual(name)[2][-1]), rel=1e-5)
        assert sim.traces == 1 and len({worker["pid"] for worker in sim.workers} - {os.getpid()}) == 2


@pytest.mark.slow
def test_the_model_is_in_the_store_once_and_no_share_has_a_copy(monkeypatch):
    """A model of 4 MB, for four shares and three workers of one node: `node_script` looks at two nodes."""
    refs, shares, put, do = [], [], pool.ray.put, pool.WorkerPool.run
    monkeypatch.setattr(pool.ray, "put", lambda value: refs.append(put(value)) or refs[-1])
    monkeypatch.setattr(
        pool.WorkerPool,
        "run",
        lambda self, broadcast, some, loads: shares.extend(some) or do(self, broadcast, some, loads),
    )
    task = fc.Task(
        init=lambda key: np.zeros(10**6, np.float32),
        loss=lambda params, batch, key: params[0] * batch["x"][:, 0],
    )
    composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.1)))
    data = fc.Clients.from_list([{"x": np.ones((4, 1), np.float32)}] * 8)
    with fc.ClusterSimulator(
        composed, data, workers=3, shares=4, batch_size=4, epochs=1, lanes=1, cpus_per_worker=0.5
    ) as sim:
        state, _ = sim.run(sim.init(jax.random.key(0)), np.arange(8))
        sim.resize(3)
        refs.clear(), shares.clear()
        sim.run(state, np.arange(8))
        (ref,) = refs
        (found,) = get_object_locations(refs).values()
        assert (
            4e6 < found["object_size"] < 5e6
            and len(found["node_ids"]) == 1
            and isinstance(ref, pool.ray.ObjectRef)
        )
        assert (
            len(sim.workers) == 3
            and len(shares) == 4
            and sum(len(pickle.dumps(share)) for share in shares) < 1e5
        )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("name", FEW)
def test_any_number_of_workers(name, workers):
    with cluster(name, workers=workers) as sim:
        assert_close(run(sim)[0], usual(name)[1])


class Trap:
    """Batches of three steps; where `file` says which round and client, their worker dies as it packs them,
    once for each line."""

    def __init__(self, file, sends=signal.SIGKILL):
        self.file, self.sends = file, sends

    def set(self, round, client, times=1):
        self.file.write_text(f"{round} {client}\n" * times)

    def __call__(self, round, client):
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        if lines and lines[0] == f"{round} {client}":
            self.file.write_text("\n".join(lines[1:]))
            if self.sends is None:
                raise ValueError(f"client {client} has no batches in round {round}")
            os.kill(os.getpid(), self.sends)
        return np.random.default_rng([round, client]).integers(0, 4, (3, BATCH))


class Slow(Trap):
    """The same batches, which the process named in `file` takes its time to find."""

    def __call__(self, round, client):
        if self.file.exists() and self.file.read_text() == str(os.getpid()):
            time.sleep(0.1)
        return np.random.default_rng([round, client]).integers(0, 4, (3, BATCH))


SAME_SIZES = (4, 5, 6, 4, 7, 4)
ALL = np.arange(len(SAME_SIZES))


def trapped(trap, name=KEPT, **settings):
    return fc.ClusterSimulator(
        round_of(name),
        clients(ZOO[name].data, SAME_SIZES + (4,) * 6),
        **{
            "batch_size": BATCH,
            "steps": 3,
            "order": trap,
            "lanes": 2,
            "cpus_per_worker": 0.5,
            "shares": 2,
            **settings,
        },
    )


def test_who_dies_joins_or_leaves_changes_no_bit(tmp_path):
    trap = Trap(tmp_path / "trap")
    with trapped(trap) as sim:
        expected, _ = run(sim, [ALL] * 4)
        assert sim.deaths == 0

        trap.set(1, 3)  # in the middle of a round
        assert_equal(run(sim, [ALL] * 4)[0], expected)
        assert sim.deaths == 1

        state, _ = run(sim, [ALL] * 2)
        os.kill(sim.workers[0]["pid"], signal.SIGKILL)  # between rounds
        sim.resize(1)
        assert len(sim.workers) == 1
        state, _ = run(sim, [ALL], state)
        sim.resize(2)
        assert len(sim.workers) == 2
        assert_equal(run(sim, [ALL], state)[0], expected)
        assert sim.traces == 1


@pytest.mark.slow
def test_who_dies_with_rows_in_files_changes_no_bit(tmp_path):
    trap = Trap(tmp_path / "trap")
    with trapped(trap) as sim:
        expected, _ = run(sim, [ALL] * 4)
    with trapped(trap, client_state=tmp_path / "rows") as sim:
        trap.set(2, 3)
        state, _ = run(sim, [ALL] * 3)
        assert sim.deaths == 1
        os.kill(sim.workers[0]["pid"], signal.SIGKILL)
        state, _ = run(sim, [ALL], state)
        assert sim.meter.report()["client state MB/round"] == 0
        assert_equal(state._replace(clients=state.clients.read(np.arange(12))), expected)


@pytest.mark.slow
def test_workers_merge_what_they_have_and_who_dies_then_changes_no_bit(tmp_path, monkeypatch, caplog):
    """As on several nodes with a large model: `node_script` has two nodes."""
    with trapped(Trap(tmp_path / "trap"), shares=5) as sim:
        expected, seen = run(sim, [ALL] * 4)

        by_workers, merged = [], pool.WorkerPool._merged
        monkeypatch.setattr(
            pool.WorkerPool,
            "_merged",
            lambda self, level: by_workers.append(len(level)) or merged(self, level),
        )
        monkeypatch.setattr(pool.WorkerPool, "nodes", 2)
        monkeypatch.setattr(simulator, "LARGE", 1)
        state, found = run(sim, [ALL] * 4)
        assert_equal(state, expected)
        jax.tree.map(np.testing.assert_array_equal, found, seen)
        exchanges = len(by_workers) // 4
        assert exchanges >= 1 and by_workers == [5] * 4 * exchanges and sim.deaths == 0

        def dies(self, level):
            os.kill(level[0][1].about["pid"], signal.SIGKILL)
            monkeypatch.setattr(pool.WorkerPool, "_merged", merged)
            return merged(self, level)

        state, _ = run(sim, [ALL] * 2)
        monkeypatch.setattr(pool.WorkerPool, "_merged", dies)
        assert_equal(run(sim, [ALL] * 2, state)[0], expected)
        assert sim.deaths == 1 and "all shares are done again" in caplog.text


@pytest.mark.slow
def test_who_hangs_is_found_by_the_clock_and_changes_no_bit(tmp_path, caplog):
    trap = Trap(tmp_path / "trap", sends=signal.SIGSTOP)
    with trapped(trap) as sim:
        expected, _ = run(sim, [ALL] * 2)
        hanging = {worker["pid"] for worker in sim.workers}
        sim._pool.hang_seconds = 3.0  # all is compiled
        trap.set(1, 3)
        assert_equal(run(sim, [ALL] * 2)[0], expected)
        assert sim.deaths == 1 and "finished nothing for 3 s" in caplog.text
        sim.resize(2)  # waits for the one who takes the place: the place is free
        assert len(hanging & {worker["pid"] for worker in sim.workers}) == 1


@pytest.mark.slow
def test_all_workers_die_and_others_go_on(tmp_path):
    trap = Trap(tmp_path / "trap")
    with trapped(trap, "fedavg", workers=1, retries=1) as sim:
        expected, _ = run(sim, [ALL])
        trap.set(0, 2)
        assert_equal(run(sim, [ALL])[0], expected)

        trap.set(0, 2, times=9)
        with pytest.raises(
            RuntimeError, match=r"(?s)was begun 2 times, and each time its worker died.*use fewer workers"
        ):
            run(sim, [ALL])
        trap.set(0, 2, times=0)
        assert_equal(run(sim, [ALL])[0], expected)


def test_an_error_in_a_worker_is_told_as_it_is_here(tmp_path):
    trap = Trap(tmp_path / "trap", sends=None)
    with trapped(trap, "fedavg", workers=1) as sim:
        run(sim, [ALL])
        trap.set(0, 2)
        with pytest.raises(ValueError, match="client 2 has no batches in round 0"):
            run(sim, [ALL])
        assert sim.deaths == 0
        run(sim, [ALL])


@pytest.mark.slow
def test_a_slow_worker_gets_fewer_shares_and_the_answer_is_the_same(tmp_path):
    """One of two works at a tenth of the speed: most shares go to the other, and no bit changes."""
    slow = Slow(tmp_path / "slow")
    with trapped(slow, "fedavg", shares=6) as sim:
        run(sim, [ALL] * 2)
        slow.file.write_text(str(sim.workers[0]["pid"]))
        worked = {worker["pid"]: [] for worker in sim.workers}
        for member in sim._pool.members:
            member.worked = lambda done, member=member, worked_as=member.worked: (
                worked_as(done),
                worked[member.about["pid"]].append(done),
            )
        found, _ = run(sim, [ALL] * 4)
        counts = [len(done) for done in worked.values()]
        assert sum(counts) == 4 * 6 and counts[0] < counts[1] / 2
        slow.file.unlink()
        assert_equal(run(sim, [ALL] * 4)[0], found)


@pytest.mark.slow  # 20 s
def test_fit_resumed_by_other_workers_is_uninterrupted_bit_for_bit(tmp_path):
    def simulator(workers):
        composed = small.simulator().round
        return fc.ClusterSimulator(
            composed,
            small.clients(),
            workers=workers,
            shares=2,
            batch_size=4,
            epochs=1,
            lanes=2,
            cpus_per_worker=0.5,
        )

    options = {
        "cohorts": small.cohorts(),
        "key": jax.random.key(3),
        "checkpoint_every": 2,
        "evaluate_every": 3,
        "progress": False,
    }
    with simulator(2) as sim:
        whole = fc.fit(sim, 6, run_dir=tmp_path / "whole", **options)
        fc.fit(sim, 4, run_dir=tmp_path / "parts", **options)
    with simulator(1) as sim:
        parts = fc.fit(sim, 6, run_dir=tmp_path / "parts", **options)
    assert small.bits(parts.state) == small.bits(whole.state)
    assert [r for r in parts.records if r["round"] > 4] == [r for r in whole.records if r["round"] > 4]
    assert parts.speed["examples/s"] > 0
    alone = fc.fit(small.simulator(), 6, **options)
    assert_close(whole.state, alone.state)


def test_memory_mapped_clients_are_opened_by_the_worker(tmp_path):
    composed, data = built("fedavg")
    data.save(tmp_path / "data")
    opened = fc.Clients.open(tmp_path / "data")
    with fc.ClusterSimulator(
        composed, opened, workers=1, batch_size=BATCH, epochs=2, lanes=3, cpus_per_worker=0.5
    ) as sim:
        assert_close(run(sim)[0], usual("fedavg")[1])
        assert sim.traces == 1


class Missing:
    """Can be sent and not be opened, as what a worker has no module for."""

    def __reduce__(self):
        return __import__, ("a_module_that_is_not_there",)

    def __call__(self, round, client):
        return np.zeros((1, BATCH), int)


def test_what_cannot_start_says_why():
    with pytest.raises(
        RuntimeError, match=r"a worker could not start: ModuleNotFoundError.*a_module_that_is_not_there"
    ):
        cluster("fedavg", workers=1, epochs=None, steps=1, order=Missing())
    lock = threading.Lock()
    with pytest.raises(
        TypeError, match=r"this round cannot be sent to workers: cannot pickle '_thread.lock'"
    ):
        cluster("fedavg", workers=1, epochs=None, steps=1, order=lambda round, client: lock)
    with pytest.raises(ValueError, match=r"9 workers of 1 CPU each need 9, but the cluster has 8"):
        cluster("fedavg", workers=9, cpus_per_worker=1)
    with pytest.raises(ValueError, match=r"1 workers of 1 GPU each need 1, but the cluster has 0"):
        cluster("fedavg", workers=1, gpus_per_worker=1)
