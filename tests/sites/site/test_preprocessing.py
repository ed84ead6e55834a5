"""A federation that prepares its columns is a simulator of the prepared clients; what leaves for it is what
the policies name."""

import dataclasses
import json
import time

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.data.preprocess import Impute, OrdinalEncode, Rescale, Standardise
from fedjax_core.sites.audit import show
from fedjax_core.sites.coordinator.units import absurd
from fedjax_core.sites.federation import Federation, Paused
from fedjax_core.sites.site.context import SiteContext
from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.wire.envelope import Header, decode, encode, header_of
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.trees import to_tensors
from tests.contracts import assert_close, assert_equal
from tests.sites.federations import BATCH, COORDINATOR, EPOCHS, NAMES, federation, whole

SIZES = (23, 9, 1, 8)
STEPS = (Standardise("x"), OrdinalEncode("sex", minimum=2), Impute("age"))
POLICY = 'site = "{}"\n[tasks]\nmode = "first-use"\n[leaving]\nfields = [{}]\n{}'
USUAL = '"weight", "examples", "data", "loss", "accuracy", "share_kept", "norm_kept"'
SUMS = USUAL + ', "moments", "categories"'


def raw(seed=0):
    """Four institutions' columns as they lie there: far from 0, with holes, in 64 bits, with whole numbers
    for words."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(SIZES), 3)) * [1, 1e3, 1e-2] + [5, -1e4, 0]
    age = rng.normal(60, 10, len(x))
    for column in (x, age):
        column[rng.random(column.shape) < 0.2] = np.nan
    sex, y = rng.choice([-7, 3_000_000_000, 11], len(x)), rng.integers(0, 2, len(x)).astype(np.int32)
    return fc.Clients.from_arrays(
        {"x": x, "age": age, "sex": sex, "y": y}, np.cumsum([0, *SIZES]), list(NAMES), allow_nan=True
    )


@pytest.fixture(scope="module")
def composed():
    """Logistic regression of all columns, of which `sex` has three codes and one for others."""

    def features(batch):
        return jax.numpy.concatenate(
            [batch["x"], batch["age"][:, None] / 100, jax.nn.one_hot(batch["sex"], 4)], axis=1
        )

    def loss(params, batch, key):
        return optax.softmax_cross_entropy_with_integer_labels(features(batch) @ params, batch["y"])

    task = fc.Task(init=lambda key: 0.1 * jax.random.normal(key, (8, 2)), loss=loss)
    return fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.1)))


def files(folder=None, policies=None):
    everyone, made = raw(), []
    for i, name in enumerate(NAMES):
        one = SiteFile(
            name=name,
            data=fc.Clients.from_list([everyone[i]], allow_nan=True),
            folder=folder and folder / name,
        )
        if policies is not None:
            path = folder / f"{name}.toml"
            path.write_text(
                POLICY.format(name, policies.get(name, policies[""])[0], policies.get(name, policies[""])[1])
            )
            one = dataclasses.replace(one, policy=path)
        made.append(one)
    return made


def run(fed, rounds=3):
    state = fed.init(jax.random.key(1))
    for cohort in [[0, 1, 2, 3], [3, 0, 1], [2, 1, 0, 3]][:rounds]:
        state, _ = fed.run(state, cohort)
    return state


def test_sites_end_where_the_simulator_of_the_prepared_clients_ends(composed, tmp_path):
    fitted = fc.preprocess.fit(STEPS, raw())
    prepared = fitted.apply(raw())
    sim = fc.Simulator(composed, prepared, lanes=2, batch_size=BATCH, epochs=EPOCHS)
    expected = run(sim)
    with federation(composed, files=files(tmp_path), folder=tmp_path, prepare=STEPS) as (
        fed,
        sites,
        transport,
    ):
        state = run(fed)
        assert fed.prepared.digest == fitted.digest
        assert_close(whole(fed, sites, state), expected)
        np.testing.assert_allclose(state.params, expected.params, rtol=1e-6, atol=1e-6)
        at_hand, at_sites, crossed = (
            sim.evaluate(expected),
            fed.evaluate(state),
            fed.cross_evaluate({"last": state.params}),
        )
    assert (
        at_sites.pooled["loss"]
        == pytest.approx(at_hand.pooled["loss"], rel=1e-5)
        == crossed.pooled("loss")[0]
    )
    assert [header_of(raw).kind for raw in transport.sent].count("measure") == 4
    for site in sites:  # what left, and by which numbers the site went on
        entries = [
            entry.about
            for entry in show(site.context.folder / "audit")
            if entry.what == "left" and entry.about["kind"] == "sums"
        ]
        assert [entry["fields"] for entry in entries] == ["categories examples moments"]
        used = [
            entry.about["numbers"]
            for entry in show(site.context.folder / "audit")
            if entry.what == "prepared"
        ]
        assert used == [fitted.digest]
    assert {
        entry.about["numbers"]
        for entry in show(tmp_path / "coordinator" / "audit")
        if entry.what == "prepared"
    } == {fitted.digest}


def test_text_of_all_sites_has_one_coding_and_so_have_labels(composed, tmp_path):
    """The second site has no case of one class, and the first no patient of one ward: what each would number
    by itself is not alike."""
    rng = np.random.default_rng(0)
    wards = [
        np.array(["icu", "ear"])[rng.integers(0, 2, 12)],
        np.array(["ear", "onc"])[rng.integers(0, 2, 9)],
    ]
    labels = [np.array(["benign", "malignant"])[rng.integers(0, 2, 12)], np.full(9, "malignant")]
    data = [
        {
            "x": rng.normal(size=(len(y), 3)).astype(np.float32),
            "age": np.ones(len(y), np.float32),
            "sex": w,
            "y": y,
        }
        for w, y in zip(wards, labels, strict=True)
    ]
    steps = (OrdinalEncode("sex", minimum=2), OrdinalEncode("y", categories=("benign", "malignant")))
    everyone = fc.Clients.from_list(data, ids=["a", "b"])
    prepared = fc.preprocess.fit(steps, everyone).apply(everyone)
    assert [set(c["y"].tolist()) for c in prepared] == [{0, 1}, {1}] and prepared.columns["sex"].max() == 2
    sim = fc.Simulator(composed, prepared, batch_size=BATCH, epochs=EPOCHS)
    expected, _ = sim.run(sim.init(jax.random.key(1)), [0, 1])
    sites = [SiteFile(name=name, data=columns) for name, columns in zip("ab", data, strict=True)]
    with Federation(
        composed,
        sites,
        batch_size=BATCH,
        epochs=EPOCHS,
        prepare=steps,
        transport="in-process",
        folder=tmp_path,
    ) as fed:
        state, _ = fed.run(fed.init(jax.random.key(1)), [0, 1])
    np.testing.assert_allclose(state.params, expected.params, rtol=1e-6, atol=1e-6)
    with Federation(  # which measures nothing: the coordinator has the categories of before
        composed,
        sites,
        batch_size=BATCH,
        epochs=EPOCHS,
        prepare=steps,
        transport="in-process",
        folder=tmp_path,
    ) as fed:
        assert fed.prepared.apply(everyone).columns["sex"].tolist() == prepared.columns["sex"].tolist()
    with pytest.raises(ValueError, match=r"column 'sex' holds text, .* fc.preprocess.OrdinalEncode\('sex'\)"):
        Federation(composed, sites, batch_size=BATCH, epochs=EPOCHS, transport="in-process")


def test_categories_of_a_single_example_may_be_told(composed):
    """Then the first row alone has a code, and the numbers of all sites have more."""
    steps = (STEPS[0], OrdinalEncode("sex", minimum=1), STEPS[2])
    with federation(composed, files=files(), prepare=steps) as (fed, sites, _):
        _, seen = fed.run(fed.init(jax.random.key(1)), [0, 1, 2, 3])
    assert float(seen["clients"]) == 4
    assert (
        fed.prepared.parameters[1]["values"].tolist() == [-7, 11, 3_000_000_000]
        and sites[2].context.data.clients.examples == 1
    )


def test_a_run_that_is_started_again_has_the_same_numbers_and_measures_nothing(composed, tmp_path):
    def fit(fed, rounds):
        return fc.fit(
            fed,
            rounds,
            cohorts=lambda r: [0, 1, 2, 3],
            key=jax.random.key(1),
            run_dir=tmp_path / "run",
            checkpoint_every=1,
            progress=False,
        )

    with federation(composed, files=files(tmp_path), folder=tmp_path, prepare=STEPS) as (fed, _, _):
        expected, digest = run(fed, 1), fed.prepared.digest
        fit(fed, 1)
    with federation(composed, files=files(tmp_path), folder=tmp_path, prepare=STEPS) as (fed, _, transport):
        assert fed.prepared.digest == digest
        assert_equal(fit(fed, 1).state, expected)
        assert "measure" not in {header_of(raw).kind for raw in transport.sent}
    path = tmp_path / "coordinator" / "run-prepared.json"
    found = json.loads(path.read_text())
    found["numbers"][0]["mean"][2][0] += 1e-9
    path.write_text(json.dumps(found))
    damaged = pytest.raises(ValueError, match=r"run-prepared\.json, the numbers of preprocessing, is damaged")
    with damaged, federation(composed, files=files(tmp_path), folder=tmp_path, prepare=STEPS):
        pass
    path.unlink()
    with federation(composed, files=files(tmp_path), folder=tmp_path, prepare=STEPS) as (fed, _, _):
        assert fed.prepared.digest == digest  # measured anew
    other = files()  # of no folder, so that they know of no study yet
    with pytest.raises(ValueError, match="has the numbers of other steps than the study's"):
        Federation(
            composed, other, batch_size=BATCH, epochs=EPOCHS, prepare=(Rescale("x"), *STEPS[1:]), transport="in-process",
            folder=tmp_path / "coordinator", key=COORDINATOR,
        )  # fmt: skip


def test_other_numbers_are_another_run(composed, tmp_path):
    """A checkpoint is of the numbers that its rounds had."""
    run = {"key": jax.random.key(1), "run_dir": tmp_path / "run", "checkpoint_every": 1, "progress": False}
    with federation(composed, files=files(tmp_path), folder=tmp_path, prepare=STEPS) as (fed, _, _):
        fc.fit(fed, 1, cohorts=lambda r: [0, 1, 2, 3], **run)
        fed.prepared = dataclasses.replace(
            fed.prepared,
            parameters=tuple({k: x + 1 for k, x in one.items()} for one in fed.prepared.parameters),
        )
        with pytest.raises(ValueError, match=r"settings\.prepared\.parameters"):
            fc.fit(fed, 2, cohorts=lambda r: [0, 1, 2, 3], **run)
    plain, prepared = (Study(composed, BATCH, EPOCHS, prepare=steps) for steps in ((), STEPS))
    assert (
        plain.hash
        == Study(composed, BATCH, EPOCHS).hash
        != prepared.hash
        != Study(composed, BATCH, EPOCHS, prepare=STEPS[:2]).hash
    )


@pytest.mark.parametrize(
    ("steps", "fields", "said"),
    [
        (
            STEPS,
            USUAL,
            "charite: charite does not let 'categories', 'moments' leave (leaving.fields) [field]",
        ),
        (
            (STEPS[0], Rescale("age"), STEPS[1]),
            SUMS,
            "charite: charite does not let 'range' leave (leaving.fields) [field]",
        ),
    ],
)
def test_a_policy_that_does_not_name_the_sums_keeps_them(composed, tmp_path, steps, fields, said):
    about = files(tmp_path, {"charite": (fields, ""), "": (SUMS + ', "range"', "")})
    with pytest.raises(Paused) as paused, federation(composed, files=about, folder=tmp_path, prepare=steps):
        pass
    assert said in str(paused.value) and "mayo" not in str(paused.value)
    assert not [
        e for e in show(tmp_path / "charite" / "audit") if e.what == "left" and e.about["kind"] == "sums"
    ]
    assert not list((tmp_path / "coordinator").glob("*prepared*"))


def test_a_site_without_a_policy_file_keeps_its_range(composed):
    refused = pytest.raises(Paused, match="charite: charite does not let 'range' leave")
    with refused, federation(composed, files=files(), prepare=(STEPS[0], Rescale("age"), STEPS[1])):
        pass


def ask(site, kind, tensors=None):
    """What the site answers to a request of this kind."""
    header = Header(
        kind=kind, run="run", round=0, exchange=0, sender=COORDINATOR.name, recipient="sites", sequence=time.time_ns(),
        created_unix_ms=int(time.time() * 1000), config=site.context.study.hash, fields={"batch": 8},
    )  # fmt: skip
    roster = Roster({site.name: site.context.key.public})
    return decode(site.handle(encode(header, tensors or {}, COORDINATOR)), roster, recipient=COORDINATOR.name)


def test_the_minimum_of_examples_and_of_a_cell_hold(composed, tmp_path):
    about = files(tmp_path, {"": (SUMS, "max_norm = 1e-3\n[minimum]\nexamples = 9\ncell = 9\n")})
    study = Study(composed, BATCH, EPOCHS, prepare=STEPS)
    with Site(about[0], study, COORDINATOR.public) as site:
        sums = ask(site, "measure").tensors
        x, sex = site.context.data.raw.columns["x"], site.context.data.raw.columns["sex"]
        assert sums["['sums'][0]['count']"].tolist() == (~np.isnan(x)).sum(axis=0).tolist()
        values, counts = np.unique(sex, return_counts=True)
        assert (counts >= 9).any() and (counts < 9).any()
        assert sums["['sums'][1]['values']"].tolist() == values[counts >= 9].tolist()
    with Site(about[1], study, COORDINATOR.public) as site:  # of 9 examples, each column has fewer values
        sums = ask(site, "measure").tensors
        assert (np.isnan(site.context.data.raw.columns["x"]).sum(axis=0) > 0).any()
        missing = np.isnan(site.context.data.raw.columns["x"]).any(axis=0)
        assert (
            sums["['sums'][0]['mean']"][missing].tolist() == [0.0] * missing.sum()
            and sums["['sums'][1]['values']"].size == 0
        )
    with Site(about[2], study, COORDINATOR.public) as site:
        reply = ask(site, "measure")
        assert (
            reply.header.kind == "refusal" and reply.header.fields["code"] == "declined" and not reply.tensors
        )
        assert "9" not in reply.header.fields["reason"]
        assert (
            "fewer than the 9 examples"
            in next(show(tmp_path / "oslo" / "audit", what="refused")).about["reason"]
        )


def test_a_site_takes_no_numbers_that_it_could_not_apply(composed):
    study = Study(composed, BATCH, EPOCHS, prepare=STEPS)
    good = to_tensors(
        {"prepared": fc.preprocess.fit(STEPS, raw()).parameters, "params": np.zeros((8, 2), np.float32)}
    )
    with Site(files()[0], study, COORDINATOR.public) as site:
        for changed, code in (
            ({}, "scores"),
            (dict.fromkeys(name for name in good if "prepared" in name), "not-prepared"),
            ({"['prepared'][0]['mean']": np.zeros(4)}, "wrong-shape"),
            ({"['prepared'][0]['mean']": np.zeros(3, np.float32)}, "wrong-dtype"),
            ({"['prepared'][0]['mean']": None}, "wrong-structure"),
            ({"['prepared'][2]['mean']": np.float64(np.nan)}, "bad-numbers"),
            ({"['prepared'][1]['values']": np.zeros((2, 2), np.int64)}, "wrong-shape"),
            ({}, "scores"),
        ):
            header = ask(
                site, "score", {k: np.asarray(x) for k, x in (good | changed).items() if x is not None}
            ).header
            assert header.fields.get("code", header.kind) == code
    filled = {name: np.nan_to_num(x) % 100 for name, x in files()[0].data[0].items()}
    filled = {name: x.astype(np.int32) if name in ("sex", "y") else x for name, x in filled.items()}
    with Site(
        SiteFile(name="charite", data=filled), Study(composed, BATCH, EPOCHS), COORDINATOR.public
    ) as site:
        assert ask(site, "measure").header.fields["code"] == "bad-request"


@pytest.mark.parametrize("categories", [(11, -7, 3_000_000_000), ("f", "m", "x")])
def test_a_request_cannot_say_which_category_is_which_where_the_study_lists_them(composed, categories):
    """Else labels could be exchanged, or persons told apart by a category that only they have."""
    steps = (STEPS[0], OrdinalEncode("sex", categories=categories), STEPS[2])
    columns = dict(raw()[0])
    columns["sex"] = np.array(categories)[np.arange(SIZES[0]) % 3]
    numbers = to_tensors(
        {"prepared": fc.preprocess.fit(steps, fc.Clients.from_list([columns], allow_nan=True)).parameters}
    )
    good = numbers | to_tensors({"params": np.zeros((8, 2), np.float32)})
    (name,) = (name for name in numbers if name.startswith("['prepared'][1]") and numbers[name].size)
    with Site(
        SiteFile(name="charite", data=columns),
        Study(composed, BATCH, EPOCHS, prepare=steps),
        COORDINATOR.public,
    ) as site:
        assert ask(site, "score", good).header.kind == "scores"
        refusal = ask(site, "score", good | {name: np.roll(good[name], 2)}).header.fields
        assert (
            refusal["code"] == "bad-numbers"
            and "OrdinalEncode('sex') is settled by the study" in refusal["reason"]
        )


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("['sums'][0]['count']", np.full(3, 24), "a count is below 0, or above the site's examples"),
        ("['sums'][0]['m2']", np.full(3, np.nan), "a mean or a sum of squares is not finite"),
        ("['sums'][0]['mean']", np.zeros(2), "they are not of one shape"),
        ("['sums'][0]['count']", np.zeros(3, np.int64), "a mean or a sum of squares of no values"),
        ("['sums'][1]['counts']", np.full(3, 23), "all together more examples than the site"),
        ("['sums'][2]['count']", np.float64(3), "is float64 instead of int64"),
        ("['sums'][2]['more']", np.float64(3), "unexpected"),
    ],
)
def test_sums_that_cannot_be_are_refused_by_site_and_step(composed, monkeypatch, part, value, said):
    true = SiteContext.reply

    def reply(self, request, fields, tensors=None, *more):
        wrong = {part: np.asarray(value)} if self.name == "charite" and request.kind == "measure" else {}
        return true(self, request, fields, {**(tensors or {}), **wrong}, *more)

    monkeypatch.setattr(SiteContext, "reply", reply)
    with pytest.raises(Paused) as paused, federation(composed, files=files(), prepare=STEPS):
        pass
    assert said in str(paused.value) and "charite: " in str(paused.value) and "mayo" not in str(paused.value)


def test_missing_values_are_for_columns_with_a_step_alone(composed, tmp_path):
    with pytest.raises(ValueError, match="column 'age' holds nan at client 0"):
        Site(files()[0], Study(composed, BATCH, EPOCHS, prepare=STEPS[:2]), COORDINATOR.public)
    skipping = {"": (SUMS, "")}
    about = files(tmp_path, skipping)[:1]
    about[0].policy.write_text("max_bad_share = 0.5\n" + about[0].policy.read_text())
    ages = about[0].data.columns["age"]
    for steps, skipped in ((STEPS, 0), (STEPS[:2], int(np.isnan(ages).sum()))):
        with Site(about[0], Study(composed, BATCH, EPOCHS, prepare=steps), COORDINATOR.public) as site:
            assert (
                site.context.data.skipped == skipped and site.context.data.raw.examples == len(ages) - skipped
            )


def test_a_label_that_the_study_has_no_place_for_is_told_before_any_sums_are_asked_for(tmp_path):
    """Whatever is prepared beside it; as also one that is not among the categories that the study lists."""
    study = fc.compose(fc.algorithms.fedavg(fc.models.logistic(1, 2), local=optax.sgd(0.1)))
    x, y = np.arange(6.0)[:, None], np.array([0, 1, 7, 0, 1, 1])
    words = np.array(["well", "ill", "I11", "well", "ill", "ill"])
    for prepare, labels in (
        ([Standardise("x")], y),
        ([Standardise("x"), OrdinalEncode("y", categories=("well", "ill"))], words),
    ):
        good = np.where(labels == labels[2], labels[0], labels)
        sites = [
            SiteFile(name=name, data={"x": x, "y": of}) for name, of in (("charite", good), ("mayo", labels))
        ]
        with pytest.raises(
            ValueError,
            match=r"the label in column 'y' at client 0 \(id 'mayo'\), its row 2, is not from 0 to 1",
        ):
            Federation(study, sites, batch_size=2, epochs=1, prepare=prepare, transport="in-process")
    # of a column that is made of all sites' sums
    own = study.algorithm.task._replace(check=lambda clients: clients.check_labels("y", 2))
    Site(
        sites[1],
        Study(fc.compose(fc.algorithms.fedavg(own, optax.sgd(0.1))), 2, 1, prepare=[OrdinalEncode("y")]),
        COORDINATOR.public,
    )


@pytest.mark.parametrize("part", ["mean", "m2"])
def test_sums_of_absurd_numbers_would_leave_nothing_of_the_others_and_are_refused_by_name(composed, part):
    def lie(name, said):
        if name != "oslo" or said.header.kind != "sums":
            return None
        return {}, {
            n: np.full_like(x, 1e30) if n.startswith("['sums'][0]") and part in n else x
            for n, x in said.tensors.items()
        }

    refused = pytest.raises(
        Paused, match=r"oslo: its sums for Standardise\('x'\) are of numbers a million times the others'"
    )
    with refused, federation(composed, files=files(), prepare=STEPS, lie=lie):
        pass


def test_sums_of_another_unit_or_of_a_column_that_few_have_are_no_absurd_ones():
    def said(*means, counts=(10, 10, 10)):
        rows = [
            {"count": np.array([n]), "mean": np.array([mean]), "m2": np.array([1.0])}
            for n, mean in zip(counts, means, strict=False)
        ]
        return [(one,) for one in rows]

    steps = (fc.preprocess.Standardise("x"),)
    assert (
        not absurd(steps, said(5.5, 99.0, 5.0))
        and not absurd(steps, said(1.0, 1e9))
        and list(absurd(steps, said(5.5, 1e9, 5.0))) == [1]
    )
    assert not absurd(steps, said(0.0, 1e9, 5.0, counts=(0, 10, 10)))  # of which two have any
