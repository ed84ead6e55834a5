import math

import jax
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.lanes.dispatch import Load
from fedjax_core.lanes.meter import Meter
from tests.contracts import COHORTS, simulator
from tests.zoo import SIZES


def test_the_work_of_a_run_is_counted():
    sim = simulator("fedavg")
    sim.reserve(9)
    state, _ = sim.run(sim.init(jax.random.key(0)), COHORTS[0])
    for cohort in COHORTS[1:]:
        state, _ = sim.run(state, cohort)
    found = sim.meter.report()
    sizes = np.array(SIZES)
    clients = sum(int((sizes[c] > 0).sum()) for c in COHORTS[1:])
    examples = sum(2 * int(sizes[c].sum()) for c in COHORTS[1:])
    steps = sum(2 * int((-(-sizes[c] // 4)).sum()) for c in COHORTS[1:])
    assert found["examples/s"] / found["client updates/s"] == pytest.approx(examples / clients)
    assert found["local steps/s"] / found["client updates/s"] == pytest.approx(steps / clients)
    assert 0 < found["fill"] <= 1 and 0 <= found["waiting for data"] <= 1
    assert found["programs"] == 1 and found["compile seconds"] > 0


def test_waiting_is_what_the_device_idled_while_the_host_packed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("jax.block_until_ready", lambda x: now.__setitem__(0, x))
    meter = Meter()
    work = Load(clients=1, steps=1, examples=10, room=20)

    def dispatch(packing, start, done):
        now[0] = start
        meter.dispatched(work, packing, done)
        meter.report()

    # two seconds of work; what was before the first does not count
    dispatch(packing=0.0, start=1.0, done=3.0)
    dispatch(packing=2.0, start=4.0, done=5.0)  # idle from 3 to 4, and the host was packing
    dispatch(packing=9.0, start=9.5, done=10.5)  # idle from 5 to 9.5, of which the host packed half a second
    found = meter.report()
    assert found["waiting for data"] == pytest.approx(1.5 / 5.5) and found["examples/s"] == pytest.approx(
        30 / 5.5
    )
    assert found["fill"] == 0.5
    meter.reset()
    assert math.isnan(meter.report()["examples/s"])


def test_fit_says_how_fast_it_went(tmp_path):
    history = fc.fit(simulator("fedavg"), 4, fc.cohorts.uniform(12, size=5, seed=0), progress=False)
    assert history.speed["examples/s"] > 0 and history.speed["programs"] == 1
