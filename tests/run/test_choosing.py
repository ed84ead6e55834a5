"""Samplers that look at the model: power-of-choice chooses by the clients' losses, alike on every backend and
when resumed."""

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.run import fit
from tests.run.small import SIZES, averaging, bits, clients, simulator
from tests.test_backends import BACKENDS, NAMES, TASK, backend, columns


class Noting:
    """A sampler that notes what it chose, and of which model."""

    def __init__(self, sampler):
        self.sampler, self.chosen = sampler, []
        self.population, self.max_size = sampler.population, sampler.max_size

    def choose(self, round, state, score):
        found = self.sampler.choose(round, state, score)
        self.chosen.append((jax.device_get(state.params), found.tolist()))
        return found


@pytest.mark.parametrize("kind", BACKENDS)
def test_it_takes_those_candidates_whose_loss_is_largest(kind, monkeypatch):
    data = fc.Clients.from_list([columns(i) for i in range(3)], ids=list(NAMES))
    candidates = fc.cohorts.uniform(3, 2, seed=4)
    sampler = Noting(fc.cohorts.power_of_choice(candidates, size=1))
    with backend(kind, fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.3))), monkeypatch) as sim:
        history = fit(sim, 4, sampler)
    assert len({chosen for _, (chosen,) in sampler.chosen}) > 1
    for round, (params, chosen) in enumerate(sampler.chosen):
        losses = fc.evaluate(TASK, params, data).clients["loss"]
        assert chosen == [max(candidates(round).tolist(), key=lambda i, losses=losses: losses[i])]
    trained = [record["examples"] for record in history.records]
    assert trained == [data.sizes[chosen] for _, (chosen,) in sampler.chosen]


@pytest.mark.parametrize(
    "build", [averaging, simulator, lambda: fc.Loops(simulator().round, clients(), batch_size=4)]
)
def test_a_run_in_stages_chooses_as_one_in_one_go(build, tmp_path):
    sampler = fc.cohorts.power_of_choice(fc.cohorts.weighted([*SIZES], 4), size=2)
    expected = fit(build(), 4, sampler)
    for rounds in (1, 3, 4):
        history = fit(build(), rounds, sampler, tmp_path)
    assert bits(history.state) == bits(expected.state) and history.records == expected.records
    with pytest.raises(ValueError, match=r"cohorts\.size: 2 -> 1"):
        fit(build(), 5, fc.cohorts.power_of_choice(fc.cohorts.weighted([*SIZES], 4), size=1), tmp_path)


@pytest.mark.parametrize("settings", [{}, {"client_state": "host"}])
def test_scores_are_what_an_evaluation_finds_of_these_clients(settings):
    """Each on its own model where clients have one; NaN of a client without examples."""
    task = fc.models.logistic(features=3, classes=2)
    algorithm = fc.algorithms.scaffold(task, lr=0.1, population=len(SIZES))
    mine = algorithm._replace(
        personal=lambda server, own: jax.tree.map(lambda x, c: x - 0.5 * c, server.params, own)
    )
    sim = fc.Simulator(fc.compose(mine), clients(), batch_size=4, lanes=2, **settings)
    state, _ = sim.run(sim.init(jax.random.key(0)), [0, 3, 5])
    everyone, who = sim.evaluate(state).clients, [5, 2, 0]
    found = sim.score(state, who)
    assert sorted(found) == sorted(everyone) and np.isnan(found["loss"][1])
    for name, values in everyone.items():
        np.testing.assert_allclose(found[name], values[who], rtol=1e-6)
    assert [np.isnan(x).all() and len(x) == 1 for x in sim.score(state, [2]).values()] == [True, True]


def test_it_costs_no_program_but_that_of_an_evaluation(caplog):
    def compiled():
        found = [record for record in caplog.records if "Compiling" in record.getMessage()]
        caplog.clear()
        return len(found)

    task = fc.models.logistic(features=3, classes=2)  # that nobody has evaluated so far
    sim = fc.Simulator(
        fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1))), clients(), batch_size=4, lanes=1
    )
    state = sim.init(jax.random.key(0))
    with jax.log_compiles():
        sim.evaluate(state)
        assert compiled() > 0
        for who in ([3], [0, 3, 5], [1, 2]):
            sim.score(state, who)
        assert compiled() == 0


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        (
            {"rounds_per_dispatch": 2},
            ValueError,
            r"power_of_choice looks at the state before each round, and rounds_per_dispatch=2",
        ),
        (
            {"cohorts": fc.cohorts.power_of_choice(fc.cohorts.uniform(6, 2), 1, "auroc")},
            ValueError,
            r"by metric 'auroc', and .* accuracy, loss",
        ),
        (
            {"cohorts": fc.cohorts.power_of_choice(fc.cohorts.uniform(7, 2), 1)},
            ValueError,
            r"draws from 7 clients, but the simulation has 6",
        ),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(settings, kind, said):
    sampler = fc.cohorts.power_of_choice(fc.cohorts.uniform(6, 2), 1)
    with pytest.raises(kind, match=said):
        fit(averaging(), **{"rounds": 2, "cohorts": sampler, **settings})


def test_a_backend_that_cannot_tell_is_refused():
    class Plain:
        def __init__(self, sim):
            self.round, self.clients, self.settings, self.init, self.run = (
                sim.round,
                sim.clients,
                sim.settings,
                sim.init,
                sim.run,
            )

    with pytest.raises(
        TypeError, match=r"power_of_choice asks what clients' losses are, and a Plain has no score"
    ):
        fit(Plain(averaging()), 2, fc.cohorts.power_of_choice(fc.cohorts.uniform(6, 2), 1))


def test_more_than_are_drawn_cannot_be_chosen():
    with pytest.raises(ValueError, match="cannot choose 3 clients of at most 2 candidates: have more drawn"):
        fc.cohorts.power_of_choice(fc.cohorts.uniform(6, 2), 3)


def test_nobody_drawn_is_nobody_chosen_and_unknown_losses_come_last():
    nobody = fc.cohorts.power_of_choice(fc.cohorts.poisson(6, 1e-9), 1)
    assert nobody.choose(0, None, None).tolist() == []
    told = {"loss": np.array([np.nan, 1.0, np.inf, 2.0, np.nan, 2.0])}
    ordered = [
        fc.cohorts.power_of_choice(fc.cohorts.everyone(6), n).choose(0, None, lambda who: told).tolist()
        for n in range(1, 7)
    ]
    assert ordered == [[2], [2, 3], [2, 3, 5], [1, 2, 3, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]
