import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.client_state import HostRows
from fedjax_core.run.checkpoint import Checkpoints
from tests.contracts import COHORTS, assert_close, built, entries_of, run, usual
from tests.contracts import simulator as of_zoo
from tests.run.small import bits, simulator

STATEFUL = ("scaffold, clip, feedback", "ifca", "feedback")


def whole(state, population):
    """The state with the rows of a store as the device would have them."""
    return state._replace(clients=state.clients.read(np.arange(population)))


@entries_of(STATEFUL[:1], slow=STATEFUL)
@pytest.mark.parametrize("where", ["host", "folder"])
def test_rows_off_the_device_change_nothing(name, where, tmp_path):
    population = len(built(name)[1])
    expected = usual(name)[1]
    state, _ = run(of_zoo(name, client_state="host" if where == "host" else tmp_path))
    assert_close(whole(state, population), expected)
    assert where == "host" or list(tmp_path.glob("rows_*.bin"))


def test_several_rounds_in_a_dispatch():
    expected = usual(STATEFUL[0])[1]
    sim = of_zoo(STATEFUL[0], client_state="host")
    state, _ = sim.run_many(sim.init(jax.random.key(1)), COHORTS)
    assert_close(whole(state, len(sim.clients)), expected)


def test_a_state_that_was_left_behind_is_refused():
    sim = simulator(client_state="host")
    first, _ = sim.run(sim.init(jax.random.key(0)), [0, 1])
    sim.run(first, [1, 3])
    with pytest.raises(
        ValueError, match=r"this state is of round 1, but what clients keep is of round 2.*goes forward only"
    ):
        sim.run(first, [1, 3])


@pytest.mark.parametrize("where", ["host", "folder"])
def test_saved_and_resumed_is_uninterrupted(where, tmp_path):
    place = "host" if where == "host" else tmp_path / "rows"
    cohorts = [[0, 1, 3], [1, 5], [4, 0], [3]]

    def build():
        return simulator(
            client_state=place
            if where == "host"
            else tmp_path / f"rows{np.random.default_rng().integers(1 << 30)}"
        )

    def on(sim, state, rounds):
        for cohort in rounds:
            state, _ = sim.run(state, cohort)
        return state

    sim = build()
    expected = whole(on(sim, sim.init(jax.random.key(0)), cohorts), 6)
    first = build()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, on(first, first.init(jax.random.key(0)), cohorts[:2]), {})
        saved = checkpoints.newest()
    # of six, those who took part
    assert {leaf.shape[0] for leaf in saved.leaves if leaf.name.startswith("clients['rows']")} == {4}
    second = build()
    resumed = on(second, saved.place(second.init(jax.random.key(0))), cohorts[2:])
    assert bits(whole(resumed, 6)) == bits(expected)


def test_fit_resumes_rows_on_the_host(tmp_path):
    draw = fc.cohorts.poisson(6, rate=0.5, seed=1)
    expected = fc.fit(simulator(client_state="host"), 6, draw, progress=False).state
    fc.fit(simulator(client_state="host"), 3, draw, tmp_path, checkpoint_every=2, progress=False)
    resumed = fc.fit(
        simulator(client_state="host"), 6, draw, tmp_path, checkpoint_every=2, progress=False
    ).state
    assert bits(whole(resumed, 6)) == bits(whole(expected, 6))


def test_only_those_who_took_part_take_room(tmp_path):
    # 4 GB, were it written
    rows = HostRows({"c": np.zeros(1000, np.float32)}, population=1_000_000, folder=tmp_path)
    rows.write(np.array([5, 999_999]), {"c": np.ones((2, 1000), np.float32)}, round=1)
    assert rows.touched == 2 and float(rows.read(np.array([999_999]))["c"].sum()) == 1000
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 1e6


def test_personal_models_are_evaluated_from_the_host():
    task = fc.models.logistic(features=3, classes=3)
    data = built("ifca")[1]
    seen = []
    for where in ("device", "host"):
        sim = fc.Simulator(
            fc.compose(fc.algorithms.ifca(task, 2, optax.sgd(0.1))),
            data,
            batch_size=4,
            epochs=1,
            lanes=2,
            client_state=where,
        )
        state, _ = sim.run(sim.init(jax.random.key(0)), [0, 3, 5])
        seen.append(sim.evaluate(state).pooled["loss"])
    assert seen[0] == pytest.approx(seen[1])


def test_a_mesh_keeps_rows_on_its_devices():
    with pytest.raises(ValueError, match='client_state must be "device" on a mesh'):
        simulator(client_state="host", mesh=jax.make_mesh((2,), ("lanes",)))
