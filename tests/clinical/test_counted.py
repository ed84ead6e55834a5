"""Counts of people by bins of risk that real sites tell in an evaluation are those of their held-out people, and give their AUROC."""

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.clinical import counted, ranks
from fedjax_core.clinical.performance import Predictions
from fedjax_core.sites.site_file import SiteFile

EDGES = np.array([0, 0.3, 0.45, 0.6, 1.0])
NAMES = ("charite", "kyoto", "oslo")
POLICY = 'site = "{}"\n[tasks]\nmode = "first-use"\n[minimum]\ncell = {}\n[leaving]\nfields = [{}]\n'
FIELDS = ("weight", "examples", "data", "loss", "accuracy")
LISTED = (*FIELDS, *counted.names(EDGES))


def data(seed, n):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 2)).astype(np.float32)
    return {"x": x, "y": (draw.random(n) < 1 / (1 + np.exp(-1.2 * x[:, 0]))).astype(np.int32)}


HOSPITALS = {name: data(i, n) for i, (name, n) in enumerate(zip(NAMES, (600, 500, 60), strict=True))}


@pytest.fixture(scope="module")
def task():
    return counted.counting(fc.models.logistic(features=2, classes=2), EDGES)


def federation(task, folder, cell, fields=LISTED):
    files = []
    for name, columns in HOSPITALS.items():
        policy = folder / f"{name}.toml"
        policy.write_text(POLICY.format(name, cell, ", ".join(f'"{one}"' for one in fields)))
        files.append(SiteFile(name=name, data=columns, policy=policy, folder=folder / name))
    composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.5)))
    return fc.Federation(
        composed,
        files,
        batch_size=50,
        epochs=1,
        seed=2,
        held_out=0.5,
        transport="in-process",
        folder=folder / "coordinator",
    )


def expected(params):
    """{site: counts} of the people whom the same draw holds out, by numpy."""
    clients = fc.Clients.from_list(list(HOSPITALS.values()), ids=list(NAMES))
    _, test = clients.split(0.5, seed=2)
    found = {}
    for name, rows in zip(NAMES, test, strict=True):
        logits = rows["x"] @ np.asarray(params["w"]) + np.asarray(params["b"])
        risk = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        found[name] = Predictions(rows["y"], risk.astype(float))
    return found


def test_sites_tell_the_counts_of_their_held_out_people(task, tmp_path):
    with federation(task, tmp_path, cell=5) as fed:
        state = fed.init(jax.random.key(0))
        for _ in range(2):
            state, _ = fed.run(state, [0, 1, 2])
        found = counted.of(fed.evaluate(state), EDGES, fed.site_names)
    people = expected(state.params)
    counts = {name: ranks.counts(*one, EDGES) for name, one in people.items()}
    small = [name for name, one in counts.items() if any(0 < n < 5 for n in np.concatenate(one))]
    assert found.without == tuple(small) and "oslo" in small and len(small) < 3
    for name, one in found.each.items():
        np.testing.assert_array_equal(one, counts[name])
    pooled = [np.concatenate(x) for x in zip(*(people[name] for name in found.each), strict=True)]
    sure = ranks.auroc(ranks.counts(*pooled, ranks.levels([pooled[1]])), exact=True).value
    bound = ranks.auroc(found.together)
    assert bound.low <= sure <= bound.high and sure > 0.7  # four bins hide 0.1 to either side


def test_without_a_minimum_all_sites_tell_and_a_policy_that_names_none_keeps_them(task, tmp_path):
    with federation(task, tmp_path, cell=0) as fed:
        state = fed.init(jax.random.key(0))
        found = counted.of(fed.evaluate(state), EDGES, fed.site_names)
    assert found.without == () and [one.ill.sum() + one.well.sum() for one in found.each.values()] == [
        300,
        250,
        30,
    ]
    (tmp_path / "other").mkdir()
    with (
        federation(task, tmp_path / "other", cell=0, fields=FIELDS) as fed,
        pytest.raises(ValueError, match=r"'ill_0'|no site tells its counts"),
    ):
        counted.of(fed.evaluate(fed.init(jax.random.key(0))), EDGES, fed.site_names)


def test_one_logit_two_classes_and_a_risk_of_ones_own_are_counted_alike():
    rows = HOSPITALS["kyoto"]
    batch = fc.Batch(rows, np.ones(500, np.float32))
    w = np.array([1.0, -0.5], np.float32)
    one = counted.counting(fc.models.logistic(features=2, classes=1), EDGES)
    two = counted.counting(fc.models.logistic(features=2, classes=2), EDGES)
    own = counted.counting(
        fc.models.logistic(features=2, classes=3), EDGES, risk=lambda logits: jax.nn.sigmoid(logits[:, 1])
    )
    wide = {
        2: np.stack([0 * w, w], axis=1),
        3: np.stack([0 * w, w, 0 * w], axis=1),
    }
    found = [
        one.evaluation({"w": w[:, None], "b": np.zeros(1, np.float32)}, batch),
        two.evaluation({"w": wide[2], "b": np.zeros(2, np.float32)}, batch),
        own.evaluation({"w": wide[3], "b": np.zeros(3, np.float32)}, batch),
    ]
    risk = 1 / (1 + np.exp(-(rows["x"] @ w).astype(float)))
    for name, want in zip(("ill", "well"), ranks.counts(rows["y"], risk, EDGES), strict=True):
        for each in found:
            np.testing.assert_array_equal([each[f"{name}_{b}"].sum() for b in range(4)], want)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: counted.counting(fc.models.logistic(2, 2), np.array([0.1, 0.5, 1.0])), "ascend from 0 to 1"),
        (lambda: counted.counting(fc.models.logistic(2, 2)._replace(predict=None), EDGES), "predicts nothing"),
        (
            lambda: counted.counting(fc.models.logistic(2, 3), EDGES).evaluation(
                {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)},
                fc.Batch(HOSPITALS["oslo"], np.ones(60, np.float32)),
            ),
            "say by risk= which probability",
        ),
        (lambda: counted.of(fc.evaluation.Evaluation({}, {}, np.zeros(1, int)), EDGES), "has no 'ill_0'"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_says_why(make, why):
    with pytest.raises(ValueError, match=why):
        make()
