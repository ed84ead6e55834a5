"""`fit` says with every round what all rounds so far tell, keeps to the account's sampler, ends when it is
spent, and resumes with it."""

import logging

import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.run.log import read_records
from tests.privacy.test_client_level import clients, composed, private
from tests.run.small import bits

PRIVATE = private(rounds=4)


@pytest.fixture(scope="module")
def sim():
    made = fc.Simulator(composed(PRIVATE), clients(), batch_size=4, lanes=2)
    made.reserve(12)
    return made


def run(sim, rounds, run_dir=None, **settings):
    return fc.fit(
        sim, rounds, **{"cohorts": PRIVATE.cohorts, "run_dir": run_dir, "checkpoint_every": 2, **settings}
    )


def test_every_round_says_what_is_told_and_nothing_else(sim, tmp_path, capsys):
    history = run(sim, 3, tmp_path)
    assert [set(record) for record in history.records] == [{"round", "kind", "epsilon"}] * 3
    assert [record["epsilon"] for record in history.records] == pytest.approx(
        [PRIVATE.epsilon(k) for k in (1, 2, 3)]
    )
    assert read_records(tmp_path / "metrics.jsonl") == history.records
    assert f"round 3 of 3: epsilon {PRIVATE.epsilon(3):.4g}" in capsys.readouterr().err
    assert np.allclose(history.curve("epsilon", "train")[1], [PRIVATE.epsilon(k) for k in (1, 2, 3)])


def test_it_ends_when_the_epsilon_is_spent_and_stays_ended(sim, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    history = run(sim, 9, tmp_path)
    assert history.stopped == "budget spent" and int(history.state.round) == 4
    assert (
        "the run ends after round 4 of 9" in caplog.text
        and f"epsilon of {PRIVATE.epsilon():.4g}" in caplog.text
    )
    again = run(sim, 9, tmp_path)
    assert again.stopped == "budget spent" and bits(again.state) == bits(history.state)
    assert run(sim, 4, tmp_path).stopped == "finished"


def test_a_run_that_is_resumed_ends_with_the_same_bits_and_the_same_epsilon(sim, tmp_path):
    whole = run(sim, 4)
    run(sim, 2, tmp_path)
    resumed = run(sim, 4, tmp_path)
    assert bits(resumed.state) == bits(whole.state) and resumed.records == whole.records


def test_it_goes_on_under_no_other_terms(sim, tmp_path):
    run(sim, 2, tmp_path / "private")
    for other, said in ((private(rounds=4, noise=0.4), "noise: 0.5 -> 0.4"), (None, "terms of privacy")):
        plain = fc.compose(fc.algorithms.fedavg(fc.models.linear(features=2), optax.sgd(0.1)))
        another = fc.Simulator(plain if other is None else composed(other), clients(), batch_size=4, lanes=2)
        with pytest.raises(ValueError, match=said):
            fc.fit(
                another,
                4,
                PRIVATE.cohorts if other is None else other.cohorts,
                tmp_path / "private",
                override=True,
            )
    fc.fit(another, 2, PRIVATE.cohorts, tmp_path / "plain")
    with pytest.raises(ValueError, match="the 2 rounds so far added no noise"):
        run(sim, 4, tmp_path / "plain", override=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cohorts": fc.cohorts.poisson(12, 1 / 3)}, "is not the sampler that the account"),
        ({"cohorts": fc.cohorts.uniform(12, 4)}, "is not the sampler that the account"),
        ({"cohorts": [[0, 1], [2, 3]]}, "is not the sampler that the account"),
        ({"evaluate_every": 1}, "evaluates on the clients that are trained on"),
    ],
)
def test_what_the_account_does_not_count_is_refused(sim, settings, said):
    with pytest.raises(ValueError, match=said):
        run(sim, 2, **settings)


def test_others_may_be_evaluated_on(sim):
    history = run(sim, 1, evaluate_every=1, evaluate=clients())
    assert {"loss", "round", "kind"} <= set(history.records[-1])


def test_clients_who_report_when_they_like_are_refused():
    asynchronous = fc.AsynchronousSimulator(composed(PRIVATE), clients(), fc.Buffer(size=2), batch_size=4)
    with pytest.raises(ValueError, match="no sample of any known rate"):
        run(asynchronous, 2)


def test_a_round_is_recorded_whole_where_metrics_are_open():
    made = private(rounds=2, open_metrics=True)
    history = fc.fit(
        fc.Simulator(composed(made), clients(), batch_size=4, lanes=2), 1, made.cohorts, evaluate_every=1
    )
    assert {"loss", "clients", "examples", "epsilon"} <= set(history.records[-1]) | set(history.records[1])
