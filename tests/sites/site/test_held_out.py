"""People who are held out at sites are not trained on, and models are judged by them: the numbers of a
simulator that splits alike."""

import logging

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.data import partition
from fedjax_core.data.preprocess import Standardise
from fedjax_core.run.fit import _say
from fedjax_core.run.monitor import Monitor
from fedjax_core.sites.doctor.examination import examine
from fedjax_core.sites.federation import Federation
from fedjax_core.sites.site.data import SiteData
from fedjax_core.sites.site.held_out import HELD_OUT, mark
from fedjax_core.sites.site.load import load_data
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study

NAMES, SIZES, SHARE, SEED = ("charite", "mayo", "oslo"), (12, 25, 40), 0.2, 3
WARDS = np.array(["ear", "icu"])


@pytest.fixture(scope="module")
def composed():
    return fc.compose(fc.algorithms.fedavg(fc.models.logistic(3, 2), optax.sgd(0.5)))


def people(i):
    """Two scans a person, who may be in two wards, with an outcome that nothing tells."""
    rng = np.random.default_rng(i)
    n = SIZES[i]
    person = rng.permutation(np.repeat(np.arange(-(-n // 2)), 2)[:n])
    x = rng.normal(5, 2, (person.max() + 1, 3))[person].astype(np.float32)
    return {
        "x": x,
        "y": rng.integers(0, 2, n).astype(np.int32),
        "who": person + 2**40,
        "ward": WARDS[rng.integers(0, 2, n)],
    }


def plain(columns, *names):
    return {name: x for name, x in columns.items() if name in ("x", "y", *names)}


def sites(data, **about):
    return [SiteFile(name=name, data=one, **about) for name, one in zip(NAMES, data, strict=False)]


def federation(composed, files, **rest):
    settings = {
        "batch_size": 4,
        "epochs": 1,
        "seed": SEED,
        "held_out": SHARE,
        "transport": "in-process",
        **rest,
    }
    return Federation(composed, files, **settings)


def same(state, expected):
    np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("by", [None, "who"])
def test_sites_are_the_simulator_that_splits_alike(composed, by, tmp_path):
    """Training, its sums for preprocessing, its sizes and weights by one part; evaluation, fit's best and
    cross-evaluation by the other."""
    everyone = fc.Clients.from_list([plain(people(i), "who") for i in range(3)], ids=list(NAMES))
    train, test = (part.without("who") for part in everyone.split(1 - SHARE, seed=SEED, by=by))
    steps = [Standardise("x")]
    fitted = fc.preprocess.fit(steps, train)
    sim = fc.Simulator(composed, fitted.apply(train), batch_size=4, epochs=1, seed=SEED)
    expected, seen = sim.run(sim.init(jax.random.key(1)), [0, 1, 2])
    judged = fc.evaluate(composed.algorithm.task, expected.params, fitted.apply(test))
    data = [plain(people(i), "who") for i in range(3)] if by else [plain(people(i)) for i in range(3)]
    with federation(composed, sites(data, person=by), prepare=steps, folder=tmp_path) as fed:
        state, told = fed.run(fed.init(jax.random.key(1)), [0, 1, 2])
        found, crossed = fed.evaluate(state), fed.cross_evaluate({"last": state.params})
        assert fed.clients.sizes.tolist() == train.sizes.tolist() and fed.prepared.digest == fitted.digest
        history = fc.fit(
            fed,
            1,
            lambda r: [0, 1, 2],
            key=jax.random.key(1),
            evaluate_every=1,
            best="accuracy",
            mode="max",
            progress=False,
        )
    same(state, expected)
    assert float(told["examples"]) == float(seen["examples"]) == train.examples
    assert (
        found.on == "held-out" and found.sizes.tolist() == test.sizes.tolist() == crossed.counts[0].tolist()
    )
    for metric in ("loss", "accuracy"):
        assert (
            found.pooled[metric]
            == pytest.approx(judged.pooled[metric], rel=1e-5)
            == crossed.pooled(metric)[0]
        )
        np.testing.assert_allclose(found.clients[metric], judged.clients[metric], rtol=1e-5)
    assert history.records[-1]["accuracy"] == pytest.approx(judged.pooled["accuracy"], rel=1e-5)


def test_departments_are_those_of_the_training_part(composed):
    """A person who is in two wards is held out of both, as the site draws before it is divided."""
    site = fc.Clients.from_list([people(2)], ids=["oslo"])
    train, test = site.split(1 - SHARE, seed=SEED, by="who")
    wards = partition.by_owner(train.columns["ward"])
    clients = fc.Clients.from_parts(plain(train.columns), wards, [f"oslo/{ward}" for ward in WARDS])
    sim = fc.Simulator(composed, clients, batch_size=4, epochs=1, seed=SEED)
    expected, _ = sim.run(sim.init(jax.random.key(1)), [0, 1])
    file = SiteFile(name="oslo", data=people(2), person="who", departments="ward")
    with federation(composed, [file], departments=True) as fed:
        state, seen = fed.run(fed.init(jax.random.key(1)), [0])
        assert float(seen["clients"]) == 2 and fed.evaluate(state).sizes.tolist() == [test.examples]
    same(state, expected)


def test_the_sites_own_column_goes_before_the_draw(composed):
    own = [plain(people(i)) | {"test": np.arange(SIZES[i]) % 3 == 0} for i in range(2)]
    own[1]["test"] = own[1]["test"].astype(np.int8)
    with federation(composed, sites(own, held_out="test")) as fed:
        assert fed.clients.judged.tolist() == [4, 9] and fed.clients.sizes.tolist() == [8, 16]
    study = Study(composed, 4, 1, seed=SEED, held_out=SHARE)
    data = SiteData(SiteFile(name="charite", data=own[0], held_out="test", labels="y"), study)
    np.testing.assert_array_equal(data.judged.columns["x"], own[0]["x"][::3])
    np.testing.assert_array_equal(data.raw.columns["x"], np.delete(own[0]["x"], np.s_[::3], axis=0))
    assert (
        list(data.raw.columns) == ["x", "y"]
        and sum(data.base_request.per_class.values()) == 8 == data.base_request.examples
    )


def test_what_is_held_out_is_part_of_the_study_and_the_same_in_every_process(composed):
    studies = [
        Study(composed, 4, 1, seed=seed, held_out=share)
        for seed, share in ((0, 0.0), (0, 0.2), (0, 0.3), (1, 0.2))
    ]
    assert len({study.hash for study in studies}) == 4
    data = [
        SiteData(SiteFile(name="oslo", data=plain(people(2))), study)
        for study in (studies[1], studies[1], studies[2], studies[3])
    ]
    one, again, more, other = (d.judged.columns["x"] for d in data)
    np.testing.assert_array_equal(one, again)
    assert len(one) == 8 and len(more) == 12 and not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("on", "said"),
    [("trained on", "on the examples that were trained on"), ("held-out", "on the sites' held-out")],
)
def test_fit_says_on_whom_the_best_is_chosen(on, said, caplog):
    class Sim:
        judged_on = on

    with caplog.at_level(logging.INFO):
        _say(Sim(), Monitor(5, None, "accuracy", "max"), progress=True)
    assert said in caplog.text and "'accuracy'" in caplog.text


@pytest.mark.slow
def test_memorised_outcomes_are_not_mistaken_for_skill(caplog):
    """Random outcomes, that a large model can learn by heart: without held-out people the best is 1, and that
    is said."""
    rng = np.random.default_rng(0)
    data = [
        {"x": rng.normal(size=(40, 20)).astype(np.float32), "y": rng.integers(0, 2, 40).astype(np.int32)}
        for _ in range(2)
    ]
    composed = fc.compose(
        fc.algorithms.fedavg(fc.models.mlp(features=20, hidden=(64,), classes=2), optax.sgd(0.3))
    )
    best = {}
    for share in (0.0, 0.3):
        caplog.clear()
        with (
            federation(composed, sites(data), held_out=share, epochs=8) as fed,
            caplog.at_level(logging.WARNING),
        ):
            history = fc.fit(
                fed, 10, lambda r: [0, 1], evaluate_every=5, best="accuracy", mode="max", progress=False
            )
        best[share] = history.best.value
        assert ("on the examples that were trained on" in caplog.text) == (share == 0.0)
    assert best[0.0] > 0.95 and best[0.3] < 0.8


def test_a_minimum_of_examples_is_also_of_those_held_out(composed, tmp_path):
    """A score of three people would be an answer about them."""
    policy = tmp_path / "policy.toml"
    text = (
        'site = "oslo"\n[tasks]\nmode = "first-use"\n[evaluation]\nmodels = "any"\n[minimum]\nexamples = {}\n'
        '[leaving]\nfields = ["weight", "examples", "data", "loss"]\n'
    )
    clients = fc.Clients.from_list([plain(people(2))])
    clients.save(tmp_path / "data")
    (tmp_path / "site.toml").write_text(
        'name = "oslo"\ndata = "data"\npolicy = "policy.toml"\nstudy = "tests.sites.site.test_held_out:study"\n'
    )
    for least, fine in ((8, True), (9, False)):
        policy.write_text(text.format(least))
        (finding,) = [one for one in examine(tmp_path / "site.toml") if one.what == "labels"]
        assert finding.fine is fine and (
            fine or "8 examples are held out, and the policy asks for 9" in finding.message
        )
        with federation(composed, [SiteFile(name="oslo", data=plain(people(2)), policy=policy)]) as fed:
            crossed = fed.cross_evaluate({"first": fed.init(jax.random.key(0)).params})
            assert crossed.counts.tolist() == [[8 if fine else 0]] and bool(crossed.reasons) is not fine


def study():
    task = fc.models.logistic(3, 2)
    return Study(fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.5))), 4, 1, seed=SEED, held_out=SHARE)


@pytest.mark.parametrize(
    ("about", "columns", "said"),
    [
        ({"held_out": "who"}, {"who": np.arange(4)}, "held_out = 'who' must be a column of truth values"),
        ({"held_out": "test"}, {}, "held_out = 'test' must be a column of truth values, .* the data have x"),
        ({"held_out": "test"}, {"test": np.zeros(4, bool)}, "none would be held out"),
        ({"held_out": "test"}, {"test": np.ones(4, bool)}, "none would be left to train on"),
        ({"held_out": "test", "person": "who"}, {"test": np.arange(4) < 2, "who": np.array([1, 2, 2, 3])}, "has a person of column 'who'"),
        ({"person": "who"}, {}, "person='who' names no column|by='who' names no column"),
        ({"person": "who"}, {"who": np.ones(4, np.int64)}, "none would be held out"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_out_is_refused(about, columns, said):
    clients = fc.Clients.from_list([{"x": np.ones((4, 3)), **columns}], ids=["charite"])
    with pytest.raises(ValueError, match=said):
        mark(clients, SiteFile(name="charite", data=None, **about), 0.2, 0)


def test_a_column_of_held_out_people_needs_a_study_that_holds_some_out(composed):
    data = plain(people(0)) | {"test": np.arange(12) < 3, "who": people(0)["who"]}
    with pytest.raises(ValueError, match="charite names held_out = 'test', and the study holds nobody out"):
        load_data(SiteFile(name="charite", data=data, held_out="test"), study=Study(composed, 4, 1))
    found = load_data(
        SiteFile(name="charite", data=data | {"test": data["y"]}, person="who"), study=Study(composed, 4, 1)
    )
    assert HELD_OUT not in found.columns and "who" not in found.columns
    with pytest.raises(TypeError, match="held_out of charite must name a column of its data, got float"):
        SiteFile(name="charite", data=data, held_out=0.2)
    with pytest.raises(ValueError, match="held_out is the share of examples"):
        Study(composed, 4, 1, held_out=1.0)


def test_a_site_that_says_it_holds_out_more_than_can_be_is_refused(composed, monkeypatch):
    monkeypatch.setattr(SiteData, "held_out", property(lambda self: {"held_out": 10**15}))
    with pytest.raises(ValueError, match="charite says that it holds out 1000000000000000 examples"):
        federation(composed, sites([plain(people(0))]))
    monkeypatch.setattr(SiteData, "held_out", property(lambda self: {}))
    with pytest.raises(ValueError, match="charite does not say how many examples it holds out"):
        federation(composed, sites([plain(people(0))]))
