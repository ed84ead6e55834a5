"""A run that begins from a state, and a function that is called after each of its rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.run import fit, load_best
from tests.run.small import SIZES, averaging, bits, clients, cohorts, simulator
from tests.run.test_resume import Crash


@pytest.fixture(scope="module")
def rich():
    made = simulator()
    made.reserve(6)
    return made


@pytest.fixture(scope="module")
def whole(rich):
    return fit(rich, 7, cohorts(), key=jax.random.key(3), evaluate_every=2)


def trained(history):
    return [record["round"] for record in history.records if record["kind"] == "train"]


@pytest.mark.parametrize("stages", [(7,), (4, 5, 7)])
def test_from_the_state_of_another_run_it_goes_on_as_that_would_have(rich, whole, tmp_path, stages):
    """With all that clients and the server keep; in one go, and in a folder of its own, interrupted."""
    begun = fit(rich, 3, cohorts(), key=jax.random.key(3))
    before = bits(begun.state)
    for rounds in stages:
        history = fit(rich, rounds, cohorts(), tmp_path, state=begun.state, evaluate_every=2)
    assert bits(begun.state) == before
    assert bits(history.state) == bits(whole.state) and trained(history) == [4, 5, 6, 7]
    np.testing.assert_equal(history.records[1:], [record for record in whole.records if record["round"] > 3])
    assert history.records[0] == {"round": 3, "kind": "eval", **rich.evaluate(begun.state).pooled}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1] == "00000007"
    assert int(load_best(tmp_path, rich).round) == history.best.round


def test_a_store_of_clients_rows_begins_from_what_is_in_another(whole, tmp_path):
    on_host = simulator(client_state="host")
    begun = fit(on_host, 3, cohorts(), key=jax.random.key(3))
    history = fit(simulator(client_state=tmp_path / "rows"), 7, cohorts(), state=begun.state)
    on_device = fit(simulator(), 7, cohorts(), key=jax.random.key(3))
    assert bits(history.state.server) == bits(on_device.state.server) == bits(whole.state.server)


def test_another_state_in_the_same_folder_is_refused(rich, tmp_path):
    first, second = (fit(rich, 2, cohorts(), key=jax.random.key(key)).state for key in (0, 1))
    fit(rich, 3, cohorts(), tmp_path, state=first)
    with pytest.raises(ValueError, match=r"(?s)another configuration:.*state: '\w{16}' -> '\w{16}'"):
        fit(rich, 4, cohorts(), tmp_path, state=second)


def test_patience_does_not_count_the_state_that_it_begins_from(rich, whole):
    values = {3: float("nan"), 4: 5.0, 5: 4.0}
    begun = fit(rich, 3, cohorts(), key=jax.random.key(3))
    history = fit(
        rich,
        5,
        cohorts(),
        state=begun.state,
        evaluate_every=1,
        evaluate=lambda sim, s: {"score": values[int(s.round)]},
        best="score",
        patience=1,
    )
    assert (history.stopped, history.best.round) == ("finished", 5)


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"params": 1.0}, ValueError, r"params= is given, and so is state=, which has its own"),
        ({"key": jax.random.key(0)}, ValueError, r"key= is given, and so is state="),
        ({"rounds": 1}, ValueError, r"state= has 2 rounds behind it, and rounds=1 in all are asked for"),
        (
            {"state": {"w": np.zeros(3)}},
            TypeError,
            r"state= is a whole State, such as History.state, got dict: for a model alone give params=",
        ),
    ],
)
def test_a_state_that_does_not_fit_the_call_is_refused(rich, settings, kind, said):
    state = fit(rich, 2, cohorts()).state
    with pytest.raises(kind, match=said):
        fit(rich, **{"rounds": 3, "cohorts": cohorts(), "state": state, **settings})


def test_a_state_of_another_algorithm_is_refused_by_leaf(rich):
    other = averaging()
    with pytest.raises(
        ValueError,
        match=r"the given state of round 0 does not fit the state of this run: .* bring its parts together by",
    ):
        fit(rich, 3, cohorts(), state=other.init(jax.random.key(0)))


def test_a_state_that_was_used_up_is_refused(rich):
    state = rich.init(jax.random.key(0))
    rich.run(state, [0], donate=True)
    jax.tree.map(lambda x: x.delete(), state.server)  # where the platform does not donate
    with pytest.raises(ValueError, match=r"state= was used up by run\(..., donate=True\)"):
        fit(rich, 3, cohorts(), state=state)


def test_it_is_told_of_every_round_and_may_keep_states(rich, whole):
    seen = []
    history = fit(
        rich,
        7,
        cohorts(),
        key=jax.random.key(3),
        evaluate_every=2,
        each_round=lambda *round: seen.append(round),
    )
    assert bits(history.state) == bits(whole.state)
    np.testing.assert_equal(history.records, whole.records)
    assert [round for round, _, _ in seen] == [1, 2, 3, 4, 5, 6, 7]
    records = [record for record in whole.records if record["kind"] == "train"]
    np.testing.assert_equal(
        [{"round": round, "kind": "train", **metrics} for round, _, metrics in seen], records
    )
    assert bits(seen[2][1]) == bits(fit(rich, 3, cohorts(), key=jax.random.key(3)).state)


@pytest.mark.parametrize("interrupted", [False, True])
def test_true_ends_the_run_which_stays_ended(rich, tmp_path, interrupted):
    called = []

    def fifth(round, state, metrics):
        called.append(round)
        if interrupted and called == [1, 2, 3, 4]:
            raise Crash
        return round == 5

    if interrupted:
        with pytest.raises(Crash):
            fit(rich, 9, cohorts(), tmp_path, each_round=fifth, checkpoint_every=2)
    for _ in range(2):
        history = fit(rich, 9, cohorts(), tmp_path, each_round=fifth, checkpoint_every=2)
        assert (history.stopped, trained(history)) == ("early stop", [1, 2, 3, 4, 5])
    assert called == ([1, 2, 3, 4, 3, 4, 5] if interrupted else [1, 2, 3, 4, 5])
    on = fit(rich, 7, cohorts(), tmp_path, checkpoint_every=2)  # without the function nothing holds it
    assert on.stopped == "finished" and bits(on.state) == bits(fit(rich, 7, cohorts()).state)


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        (
            {"each_round": "print"},
            TypeError,
            r"each_round= must be a function \(round, state, metrics\), got 'print'",
        ),
        (
            {"each_round": print, "rounds_per_dispatch": 2},
            ValueError,
            r"rounds_per_dispatch=2 has that of some alone",
        ),
        (
            {"each_round": lambda *round: round},
            TypeError,
            r"each_round= must return None, or True to end the run, and returned a tuple",
        ),
    ],
)
def test_a_function_that_is_none_is_refused(rich, settings, kind, said):
    with pytest.raises(kind, match=said):
        fit(rich, 2, cohorts(), **settings)


def test_a_list_of_cohorts_is_taken_as_it_stands(rich, tmp_path):
    table = [[0, 3], [1], [5, 4, 0]]
    expected = fit(rich, 3, lambda round: table[round])
    assert bits(fit(rich, 3, table).state) == bits(expected.state)
    fit(rich, 2, table, tmp_path)
    assert bits(fit(rich, 3, table, tmp_path).state) == bits(expected.state)
    with pytest.raises(ValueError, match=r"cohorts\.digest"):
        fit(rich, 3, [*table[:2], [5, 4]], tmp_path)
    rows = np.array([[0, 3], [5, 4]])
    assert (
        bits(fit(rich, 2, rows).state)
        == bits(fit(rich, 2, jnp.asarray(rows)).state)
        == bits(fit(rich, 2, lambda r: rows[r]).state)
    )


def test_a_class_around_a_simulator_is_a_backend_too(tmp_path):
    """As the README says: gossip between the clients' own models after each round, resumed by `fit`."""

    class Gossip:
        def __init__(self, sim):
            self.round, self.clients, self.settings, self.evaluate, self.init = (
                sim.round,
                sim.clients,
                sim.settings,
                sim.evaluate,
                sim.init,
            )
            self.sim = sim

        def run(self, state, cohort, *, donate=False):
            state, metrics = self.sim.run(state, cohort)
            own = jax.tree.map(lambda x: (x + jnp.roll(x, 1, axis=0)) / 2, state.clients.own)
            return state._replace(clients=state.clients._replace(own=own)), metrics

    composed = fc.compose(
        fc.algorithms.scaffold(fc.models.logistic(features=3, classes=2), lr=0.1, population=len(SIZES))
    )
    sim = Gossip(fc.Simulator(composed, clients(), batch_size=4, lanes=1))
    expected = fit(sim, 3, cohorts())
    fit(sim, 2, cohorts(), tmp_path)
    assert bits(fit(sim, 3, cohorts(), tmp_path).state) == bits(expected.state)
