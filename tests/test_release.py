"""The release gate blocks a model that remembers, and passes one that cannot; what it writes is for its owner
alone."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import release
from fedjax_core.cli import main
from fedjax_core.release import Candidate, Limits, examine, write

FEATURES, MEMBERS = 80, 30


def records(seed):
    """Of two sites; labels are coins, so that they can only be learnt by heart."""
    rng = np.random.default_rng(seed)
    sites = [
        {
            "x": rng.normal(size=(MEMBERS, FEATURES)).astype(np.float32),
            "y": rng.integers(0, 2, MEMBERS).astype(np.int32),
            "sex": np.arange(MEMBERS, dtype=np.int32) % 2,
        }
        for _ in range(2)
    ]
    return fc.Clients.from_list(sites, ids=["charite", "mayo"])


def candidate(lr=0.5):
    algorithm = fc.algorithms.fedavg(fc.models.logistic(features=FEATURES, classes=2), optax.sgd(lr))
    simulator = fc.Simulator(fc.compose(algorithm), records(0), batch_size=10, epochs=5, lanes=1)
    return Candidate(simulator, records(1), lambda round: [0, 1], rounds=4, subgroup="sex")


def trained(of):
    state = of.simulator.init(jax.random.key(0))
    for round in range(of.rounds):
        state, _ = of.simulator.run(state, of.cohorts(round))
    return state


@pytest.mark.slow
def test_a_model_that_knows_labels_by_heart_is_blocked_for_all_sites_and_subgroups(tmp_path):
    of, limits = candidate(), Limits(fpr=0.1, tpr=0.2)
    verdict = examine(of, trained(of).params, shadows=6, limits=limits)
    found = {(one.check, one.group): one for one in verdict.findings}
    assert verdict.blocked
    for group in ("all", "site charite", "site mayo", "sex = 0", "sex = 1"):
        assert found["loss AUC", group].value > 0.75 and found["loss AUC", group].blocks
        assert found["lira AUC", group].value > 0.75
    assert (
        found["records per parameter", "all"].value == 60 / 162
        and found["records per parameter", "all"].blocks
    )
    assert found["rarest level", "column sex"].value == 30 and not found["rarest level", "column sex"].blocks
    write(verdict, limits, tmp_path / "release")
    said = json.loads((tmp_path / "release" / "release.json").read_text())
    assert said["blocked"] and said["limits"]["auc"] == 0.6
    with open(tmp_path / "release" / "probabilities.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120 and sum(int(row["member"]) for row in rows) == 60
    assert all(abs(float(row["probability_0"]) + float(row["probability_1"]) - 1) < 1e-6 for row in rows)
    assert (tmp_path / "release" / "probabilities.csv").stat().st_mode & 0o077 == 0
    untrained = jax.tree.map(jnp.zeros_like, of.simulator.init(jax.random.key(0)).params)
    assert not [
        one
        for one in examine(of, untrained, shadows=2, limits=limits).findings
        if one.check.startswith("loss") and one.blocks
    ]


def test_attacks_are_judged_by_group_and_small_groups_are_not():
    rng = np.random.default_rng(0)
    member = np.arange(400) < 200
    scores = {"loss": rng.normal(0, 1, 400) + 2 * member}
    few = np.arange(400) % 40 == 0
    found = list(release._attacked(scores, member, {"all": np.ones(400, bool), "few": few}, Limits()))
    assert [(one.check, one.group, one.blocks) for one in found] == [
        ("loss AUC", "all", True),
        ("loss TPR at 0.01 FPR", "all", True),
        ("loss", "few", False),
    ]
    assert "not judged: 5 members and 5 others" in found[2].said and "Clopper and Pearson" in found[1].said


def test_structure_is_looked_at_without_an_attack():
    columns = {"x": np.zeros((100, 3), np.float32), "y": np.array([1] * 4 + [0] * 96, np.int32)}
    found = list(release._structure({"w": np.zeros(10)}, columns, np.arange(100) < 50, Limits()))
    assert [(one.check, one.value, one.blocks) for one in found] == [
        ("records per parameter", 5.0, False),
        ("rarest level", 4.0, True),
    ]


def test_a_run_without_checkpoints_or_candidate_is_refused(tmp_path, capsys):
    assert main(["release", str(tmp_path), "--candidate", "json:loads"]) == 1
    assert "is of Python's own library" in capsys.readouterr().err
