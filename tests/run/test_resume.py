"""Resume is exact, or refused: nothing in between."""

import json
import logging

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh

import fedjax_core as fc
from fedjax_core.run import CheckpointError, config, fit
from tests.run.small import averaging, bits, clients, cohorts, simulator

ROUNDS = 8
SETTINGS = {"checkpoint_every": 3, "evaluate_every": 4}


class Crash(Exception):
    """The end of a process, as far as `fit` can tell."""


class Crashing:
    """A simulator that ends the run at a round, with that round's dispatch or once it is at work."""

    def __init__(self, sim, at):
        self.sim, self.at = sim, at

    def __getattr__(self, name):
        return getattr(self.sim, name)

    def _crash_at(self, state, rounds):
        if int(state.round) <= self.at < int(state.round) + rounds:
            raise Crash

    def run(self, state, cohort, **how):
        self._crash_at(state, 1)
        return self.sim.run(state, cohort, **how)

    def run_many(self, state, cohorts, **how):
        self._crash_at(state, len(cohorts))
        return self.sim.run_many(state, cohorts, **how)


@pytest.fixture(scope="module")
def sim():
    return averaging()


@pytest.fixture(scope="module")
def rich():
    return simulator()


@pytest.fixture(scope="module")
def uninterrupted(rich):
    return {group: fit(rich, ROUNDS, cohorts(), rounds_per_dispatch=group, **SETTINGS) for group in (1, 4)}


def crash(sim, at, run_dir, draw=None, **settings):
    with pytest.raises(Crash):
        fit(Crashing(sim, at), ROUNDS, draw or cohorts(), run_dir, **{**SETTINGS, **settings})


def check_same(history, expected):
    assert bits(history.state) == bits(expected.state)
    np.testing.assert_equal(history.records, expected.records)  # NaN where it was NaN
    assert (history.best, history.stopped) == (expected.best, expected.stopped)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("at", [(0,), (1,), (3,), (4,), (7,), (2, 2, 5, 6)])
def test_crashed_and_resumed_is_uninterrupted(rich, uninterrupted, tmp_path, at, group):
    for round in at:
        crash(rich, round, tmp_path, rounds_per_dispatch=group)
    check_same(
        fit(rich, ROUNDS, cohorts(), tmp_path, rounds_per_dispatch=group, **SETTINGS), uninterrupted[group]
    )
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in logged if r["kind"] == "train"] == list(range(1, ROUNDS + 1))
    assert [r["round"] for r in logged if r["kind"] == "eval"] == [0, 4, 8]


def test_in_stages_is_uninterrupted(rich, uninterrupted, tmp_path):
    for rounds in (1, 3, 5, ROUNDS):
        history = fit(rich, rounds, cohorts(), tmp_path, **SETTINGS)
    check_same(history, uninterrupted[1])
    check_same(fit(rich, ROUNDS, cohorts(), tmp_path, **SETTINGS), uninterrupted[1])  # nothing left to do


def test_on_two_devices(tmp_path):
    def build():
        return simulator(mesh=Mesh(np.array(jax.devices()[:2]), "lanes"))

    crash(build(), 5, tmp_path)
    check_same(
        fit(build(), ROUNDS, cohorts(), tmp_path, **SETTINGS), fit(build(), ROUNDS, cohorts(), **SETTINGS)
    )


@pytest.mark.slow  # 22 s of compiling
def test_cohorts_that_grow_unannounced(tmp_path):
    def growing(round):
        return list(range(1 + min(round, 5)))

    crash(simulator(lanes=3), 5, tmp_path, growing)
    check_same(
        fit(simulator(lanes=3), ROUNDS, growing, tmp_path, **SETTINGS),
        fit(simulator(lanes=3), ROUNDS, growing, **SETTINGS),
    )


@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_damaged_newest_costs_rounds_and_not_the_answer(rich, uninterrupted, tmp_path, caplog, all_of_them):
    crash(rich, 7, tmp_path)
    homes = sorted((tmp_path / "checkpoints").iterdir())
    for home in homes if all_of_them else homes[-1:]:
        (home / "checkpoint.json").write_text("{")
    if all_of_them:
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read .* nothing was removed"):
            fit(rich, ROUNDS, cohorts(), tmp_path, **SETTINGS)
        return
    check_same(fit(rich, ROUNDS, cohorts(), tmp_path, **SETTINGS), uninterrupted[1])
    assert "checkpoint of round 6 is damaged" in caplog.text and "going on from round 4" in caplog.text


def test_lost_checkpoints_are_not_a_fresh_start(sim, tmp_path):
    fit(sim, 2, cohorts(), tmp_path)
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError,
        match=r"metrics\.jsonl knows of 2 rounds, but .*checkpoints has no checkpoint\. Bring the",
    ):
        fit(sim, 3, cohorts(), tmp_path)


def test_a_disk_that_fills_costs_rounds_and_not_the_answer(rich, uninterrupted, tmp_path, monkeypatch):
    save, saves = ocp.Checkpointer.save, []

    def full_at_the_third(self, directory, **kwargs):
        saves.append(directory)
        if len(saves) >= 3:
            raise OSError(28, "No space left on device")
        save(self, directory, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(ocp.Checkpointer, "save", full_at_the_third)
        with pytest.raises(
            CheckpointError,
            match=r"checkpoint of round 4 .*No space left on device.* last good one, of round 3, is kept",
        ):
            fit(rich, ROUNDS, cohorts(), tmp_path, **SETTINGS)
    check_same(fit(rich, ROUNDS, cohorts(), tmp_path, **SETTINGS), uninterrupted[1])


def test_a_disk_that_is_full_is_told_before_the_first_round(sim, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ocp.Checkpointer,
        "save",
        lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(
        CheckpointError, match=r"checkpoint of round 0 .*There is none before it: free some space"
    ):
        fit(Crashing(sim, 0), 1, cohorts(), tmp_path)


CHANGES = {
    "learning rate": ({"sim": lambda: averaging(lr=0.2)}, r"step_size: -0\.1 -> -0\.2"),
    "cohorts": ({"cohorts": fc.cohorts.poisson(6, rate=0.4, seed=1)}, r"cohorts\.rate: 0\.5 -> 0\.4"),
    "kind of cohorts": ({"cohorts": fc.cohorts.everyone(6)}, r"cohorts: '.*poisson' -> '.*everyone'"),
    "key": ({"key": jax.random.key(1)}, r"key: 'key<threefry2x32> \[0, 0\]' -> 'key<threefry2x32> \[0, 1\]'"),
    "group": ({"rounds_per_dispatch": 2}, r"rounds_per_dispatch: 1 -> 2"),
    "patience": ({"evaluate_every": 1, "patience": 3}, r"evaluation\.patience: \(absent\) -> 3"),
    "params": (
        {"params": {"b": np.zeros(2, np.float32), "w": np.zeros((3, 2), np.float32)}},
        r"params: None -> \(absent\)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_configuration_is_refused_by_name(sim, tmp_path, change, caplog):
    fit(sim, 2, cohorts(), tmp_path, evaluate_every=1)
    changed, said = CHANGES[change]
    changed = {"evaluate_every": 1, "cohorts": cohorts(), **changed}
    other = changed.pop("sim", lambda: sim)()
    with pytest.raises(
        ValueError,
        match=rf"(?s)holds a run with another configuration:.*{said}.*another run_dir, or .*override=True",
    ):
        fit(other, 3, run_dir=tmp_path, **changed)
    history = fit(other, 3, run_dir=tmp_path, override=True, **changed)
    assert (
        int(history.state.round) == 3 and "going on from round 2 with a changed configuration" in caplog.text
    )
    # from now on this is the configuration
    assert fit(other, 3, run_dir=tmp_path, **changed).stopped == "finished"


def test_changed_data_and_settings_are_refused_by_name(tmp_path):
    def build(change=0.0, **settings):
        columns = [clients()[i] for i in range(6)]
        columns[0]["x"] = columns[0]["x"] + np.float32(change)
        algorithm = fc.algorithms.fedavg(fc.models.logistic(features=3, classes=2), local=optax.sgd(0.1))
        settings = {"batch_size": 9, "epochs": 1, "lanes": 1, **settings}
        return fc.Simulator(fc.compose(algorithm), fc.Clients.from_list(columns), **settings)

    fit(build(), 1, cohorts(), tmp_path)
    for other, said in (
        (build(1e-3), r"clients\.fingerprint: '\w{16}' -> '\w{16}'"),
        (build(batch_size=3), r"settings\.batch_size: 9 -> 3"),
        (build(lanes=2), r"settings\.lanes: 1 -> 2"),
        (build(seed=1), r"settings\.seed: 0 -> 1"),
    ):
        with pytest.raises(ValueError, match=said):
            fit(other, 2, cohorts(), tmp_path)


def test_what_leaves_the_answer_alone_may_change(sim, tmp_path, caplog):
    fit(sim, 2, cohorts(), tmp_path, evaluate_every=1, checkpoint_every=1)
    history = fit(sim, 5, cohorts(), tmp_path, evaluate_every=3, checkpoint_every=2, keep=1, progress=False)
    assert bits(history.state) == bits(fit(sim, 5, cohorts()).state) and not caplog.records


def test_evaluation_may_begin_later_and_by_another_metric(sim, tmp_path, caplog):
    fit(sim, 1, cohorts(), tmp_path)
    assert fit(sim, 2, cohorts(), tmp_path, evaluate_every=1).best.round == 2 and not caplog.records
    history = fit(sim, 3, cohorts(), tmp_path, evaluate_every=1, best="accuracy", mode="max")
    assert (
        history.best.round == 3
        and "the best was by loss (min) and is now by accuracy (max): it begins anew" in caplog.text
    )


def test_fewer_rounds_than_done_are_refused(sim, tmp_path):
    fit(sim, 3, cohorts(), tmp_path)
    with pytest.raises(
        ValueError,
        match=r"has 3 rounds done already, but rounds=2\. Ask for at least as many, or choose another run_dir",
    ):
        fit(sim, 2, cohorts(), tmp_path)


def test_other_versions_are_told_and_not_refused(sim, tmp_path, monkeypatch, caplog):
    fit(sim, 1, lambda round: [0], tmp_path)
    found = {**config.versions(), "jax": "9.9.9", "python": "3.99.0"}
    monkeypatch.setattr(config, "versions", lambda: found)
    with caplog.at_level(logging.WARNING):
        # Compiled by another Python the same cohorts would have other code: here they do because they are another
        # function.
        fit(sim, 2, lambda round: [1], tmp_path)
    assert "other versions, so last bits may differ" in caplog.text and "-> '9.9.9'" in caplog.text
