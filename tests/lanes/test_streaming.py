import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.lanes import simulator as module
from tests.contracts import COHORTS, assert_close, by_plain_loops, entries_of, run, simulator
from tests.zoo import clients


@entries_of(["linen convolution"], slow=["mime, clip, feedback", "fedavg", "ifca", "cox"])
def test_streamed_examples_are_the_same(name):
    assert_close(run(simulator(name, stream=True))[0], by_plain_loops(name)[0])


def test_on_several_devices():
    mesh = jax.make_mesh((4,), ("lanes",))
    assert_close(run(simulator("mime", stream=True, lanes=8, mesh=mesh))[0], by_plain_loops("mime")[0])


def test_many_rounds_go_in_several_dispatches(monkeypatch):
    sim = simulator("fedavg", stream=True)
    sim.reserve(9)
    monkeypatch.setattr(module, "_STREAMED_BYTES", 2 * sim._feed.bytes_a_round())
    state, seen = sim.run_many(sim.init(jax.random.key(1)), COHORTS)
    assert_close(state, by_plain_loops("fedavg")[0])
    assert seen["examples"].total.shape == (len(COHORTS),) and sim.traces == 1
    assert sim.meter.report()["programs"] == 1


def test_memory_mapped_data_is_streamed_and_not_kept(tmp_path):
    rng = np.random.default_rng(0)
    sizes = np.full(4000, 50)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    columns = {
        "x": rng.normal(size=(offsets[-1], 60)).astype(np.float32),
        "y": rng.integers(0, 10, offsets[-1]).astype(np.int64),
    }
    fc.Clients.from_arrays(columns, offsets).save(tmp_path / "data")  # 50 MB
    del columns
    data = fc.Clients.open(tmp_path / "data")
    sim = fc.Simulator(
        fc.compose(fc.algorithms.fedavg(fc.models.logistic(features=60, classes=10), optax.sgd(0.1))),
        data,
        batch_size=10,
        lanes=8,
    )
    assert sim.streams
    state = sim.init(jax.random.key(0))

    for _ in range(40):
        state, seen = sim.run(state, rng.choice(4000, 100, replace=False))
    assert float(seen["examples"]) == 5000 and sim.traces == 1
    held = 0
    with open("/proc/self/smaps") as lines:
        inside = False
        for line in lines:
            if "-" in line.split()[0] and ":" not in line.split()[0]:
                inside = "column_" in line
            elif inside and line.startswith("Rss:"):
                held += int(line.split()[1]) * 1024
    assert held < 5e6, "pages of the data stay in memory"


def test_whole_numbers_that_do_not_fit_are_refused_at_once_or_of_mapped_data_when_they_are_read(tmp_path):
    at_hand = fc.Clients.from_list(
        [{"x": np.array([1.0], np.float32), "n": np.array([i << 33])} for i in range(3)]
    )
    at_hand.save(tmp_path / "data")
    data = fc.Clients.open(tmp_path / "data")
    task = fc.Task(lambda key: np.zeros(1, np.float32), lambda w, batch, key: (batch["x"] - w[0]) ** 2)
    sim = fc.Simulator(
        fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1))), data, batch_size=1, lanes=1, stream=True
    )
    state = sim.init(jax.random.key(0))
    sim.run(state, [0])
    with pytest.raises(ValueError, match="column 'n' holds whole numbers that do not fit int32"):
        sim.run(state, [0, 1][1:])
    with pytest.raises(
        ValueError,
        match=r"column 'n' holds a whole number that does not fit 32 bits at client 1 \(id 1\), its row 0",
    ):
        fc.Simulator(
            fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1))),
            at_hand,
            batch_size=1,
            lanes=1,
            stream=True,
        )


def test_what_is_streamed_by_default():
    assert not simulator("fedavg").streams
    assert simulator("fedavg", stream=True)._data == () and len(clients()) == 12
