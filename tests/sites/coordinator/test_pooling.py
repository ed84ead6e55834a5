"""A metric is pooled over the sites that tell it and are believed, the others are named, and no site alone
decides which model is best."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.evaluation import NOT_FINITE, NOT_TOLD
from fedjax_core.run.monitor import Monitor
from fedjax_core.sites.coordinator.pooling import ALONE, SiteTotals, doubts, read
from tests.sites.federations import NAMES, columns, federation, site_files
from tests.zoo import fedavg

POLICY = 'site = "{}"\n[tasks]\nmode = "first-use"\n[evaluation]\nmodels = "any"\n[leaving]\nfields = ["weight", "examples", "data"{}]'
RANGES = (("loss", 0.0, math.inf), ("accuracy", 0.0, 1.0))


def kept_by(tmp_path, *sites, fields=', "loss"'):
    """The sites' files, where the policies of these let only some fields leave."""
    found = []
    for file in site_files():
        path = tmp_path / f"{file.name}.toml"
        path.write_text(POLICY.format(file.name, fields))
        found.append(dataclasses.replace(file, policy=path) if file.name in sites else file)
    return found


def saying(site, **fields):
    """The site tells these of a model, and the truth else."""
    return lambda name, said: (
        (fields, None) if name == site and said.header.kind in ("metrics", "scores") else None
    )


def told(*means, name="loss", examples=10):
    return {at: SiteTotals(examples, {name: mean * examples}) for at, mean in enumerate(means)}


@pytest.mark.parametrize(
    ("told_", "doubted"),
    [
        (told(0.5, 0.6, 0.7), []),
        (told(0.001, 0.001, 90), []),  # a model that fails at one hospital is what evaluation is to show
        (told(0.5, 0.6, -1e30), [2]),
        (told(0.5, 0.6, 1e30), [2]),
        (told(0.5, -1e-7), []),
        (told(0.5, -0.1), [1]),
        (told(0.5, 0.7, math.nan), []),  # which is named by whoever pools
        (told(1e9, 2e9, 3e9), []),
        (told(0.9, 1.0, name="accuracy"), []),
        (told(0.9, 1.01, name="accuracy"), [1]),
        (told(-5, 3, 4, name="margin"), []),
        (told(-5, 3, 4e3, name="margin"), [2]),
        (told(3, 4e30, name="margin"), []),  # two have nothing to compare with
    ],
)
def test_what_is_doubted(told_, doubted):
    assert sorted(at for at, _ in doubts(told_, RANGES)) == doubted


def test_a_metric_of_one_site_of_three_is_nobodys_where_the_study_does_not_name_it():
    three = told(0.5, 0.6, 0.7) | {1: SiteTotals(10, {"loss": 6.0, "made_up": 10.0, "accuracy": 5.0})}
    assert doubts(three, RANGES) == {(1, "made_up"): ALONE}
    assert doubts(three, (), ("made_up",)) == {(1, "accuracy"): ALONE}
    assert not doubts({at: three[at] for at in (0, 1)}, RANGES)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"examples": 3, "loss": 1.5}, SiteTotals(3, {"loss": 1.5})),
        (
            {"examples": 3, "loss": 1, "weight": 9.0, "data": "f0", "loss.weight": 2.0},
            SiteTotals(3, {"loss": 1.0}),
        ),
        (
            {"examples": 6, "loss": 1.5},
            "its reply is of 6 examples, and it said before the first round that it has 5",
        ),
        ({"examples": 10**15}, "its reply is of 1000000000000000 examples"),
        ({"examples": 0}, "lacks the number of examples"),
        ({"examples": True}, "lacks the number of examples"),
        ({"examples": 2.0}, "lacks the number of examples"),
        ({}, "lacks the number of examples"),
    ],
)
def test_a_reply_counts_by_the_examples_that_its_site_said_to_have(fields, found):
    if isinstance(found, str):
        assert found in read(fields, 5)
    else:
        assert read(fields, 5) == found


def test_what_is_no_number_is_not_finite():
    assert all(
        math.isnan(read({"examples": 2, "loss": value}, 5).totals["loss"])
        for value in (None, "1", True, math.nan)
    )


def test_a_metric_that_a_site_keeps_is_pooled_over_the_others_in_evaluation_and_in_cross_evaluation(tmp_path):
    composed = fedavg()
    with federation(composed, files=kept_by(tmp_path, "charite", "oslo")) as (fed, _, _):
        state = fed.init(jax.random.key(0))
        found, cross = fed.evaluate(state), fed.cross_evaluate({"now": state.params})
    others = fc.Clients.from_list([columns()[1], columns()[3]])
    expected = fc.evaluate(composed.algorithm.task, state.params, others)
    assert found.pooled["accuracy"] == pytest.approx(expected.pooled["accuracy"])
    assert cross.pooled("accuracy")[0] == pytest.approx(expected.pooled["accuracy"])
    assert found.without == {"accuracy": {"charite": NOT_TOLD, "oslo": NOT_TOLD}}
    assert dict(cross.without) == {("accuracy", "now", site): NOT_TOLD for site in ("charite", "oslo")}
    assert np.isnan(found.clients["accuracy"]).tolist() == [True, False, True, False]
    everyone = fc.Clients.from_list(columns())
    assert found.pooled["loss"] == pytest.approx(
        fc.evaluate(composed.algorithm.task, state.params, everyone).pooled["loss"]
    )


def test_the_best_model_is_chosen_by_those_who_tell_and_never_by_one_alone(tmp_path, caplog):
    def fit(*sites):
        (tmp_path / str(len(sites))).mkdir()
        with federation(fedavg(), files=kept_by(tmp_path / str(len(sites)), *sites)) as (fed, _, _):
            return fc.fit(
                fed,
                3,
                fc.cohorts.everyone(4),
                evaluate_every=1,
                best="accuracy",
                mode="max",
                patience=3,
                progress=False,
            )

    history = fit("mayo", "oslo")
    accuracies = [record["accuracy"] for record in history.records if record["kind"] == "eval"]
    assert history.best is not None and np.isfinite(accuracies).all() and len(accuracies) == 4
    assert (
        caplog.text.count(
            "the best model is chosen by the 'accuracy' of the others, without 2 of all. mayo: it does not tell it"
        )
        == 1
    )
    with pytest.raises(
        ValueError,
        match="best='accuracy' would go by what one site alone tells, without charite, mayo, oslo: let their",
    ):
        fit("charite", "mayo", "oslo")
    with pytest.raises(ValueError, match="best='accuracy' is not among the metrics of the evaluation"):
        fit(*NAMES)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"loss": -1e30}, "its value is not within 0 and inf"),
        ({"loss": 1e30}, "its value is more than 100 times the others'"),
        ({"loss": None}, NOT_FINITE),
    ],
)
def test_a_loss_that_cannot_be_does_not_decide(lie, reason, caplog):
    with federation(fedavg(), lie=saying("mayo", **lie)) as (fed, _, _):
        state = fed.init(jax.random.key(0))
        found, cross = fed.evaluate(state), fed.cross_evaluate({"now": state.params})
    others = fc.Clients.from_list([data for at, data in enumerate(columns()) if NAMES[at] != "mayo"])
    expected = fc.evaluate(fed.round.algorithm.task, state.params, others).pooled["loss"]
    assert found.pooled["loss"] == pytest.approx(expected) and cross.pooled("loss")[0] == pytest.approx(
        expected
    )
    assert found.without == {"loss": {"mayo": reason}} and dict(cross.without) == {
        ("loss", "now", "mayo"): reason
    }
    assert reason == NOT_FINITE or f"the metric 'loss' of mayo does not count: {reason}" in caplog.text


def test_a_reply_of_more_examples_than_its_site_has_does_not_count():
    with federation(fedavg(), lie=saying("mayo", examples=10**12)) as (fed, _, _):
        state = fed.init(jax.random.key(0))
        found, cross = fed.evaluate(state), fed.cross_evaluate({"now": state.params})
    assert found.sizes.tolist() == [23, 0, 1, 4] and list(found.without["loss"]) == ["mayo"]
    assert "is of 1000000000000 examples" in cross.reasons["now", "mayo"]


def test_a_metric_that_is_made_up_is_nobodys(caplog):
    with federation(fedavg(), lie=saying("mayo", auroc=5.0)) as (fed, _, _):
        state = fed.init(jax.random.key(0))
        found, cross = fed.evaluate(state), fed.cross_evaluate({"now": state.params})
        monitor = Monitor(every=1, metric="auroc", mode="max")
        with pytest.raises(
            ValueError, match=r"best='auroc' is not among the metrics .*\['accuracy', 'loss'\]"
        ):
            monitor(fed, state)
    assert list(found.pooled) == list(cross.totals) == ["accuracy", "loss"]
    assert "the metric 'auroc' of mayo does not count: no other site has such a metric" in caplog.text


def test_a_metric_that_all_others_keep_is_of_the_study_and_told_by_one(tmp_path):
    task = fc.models.logistic(features=3, classes=3)
    task = task._replace(metrics=lambda params, batch: {"large": batch["x"][:, 0] > 1}, ranges=())
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1)))
    with federation(
        composed, files=kept_by(tmp_path, "charite", "oslo", "kyoto"), lie=saying("oslo", made_up=1.0)
    ) as (fed, _, _):
        found = fed.evaluate(fed.init(jax.random.key(0)))
    assert (
        found.pooled["large"] == pytest.approx((columns()[1]["x"][:, 0] > 1).mean())
        and "made_up" not in found.pooled
    )
    assert found.without["large"] == dict.fromkeys(("charite", "oslo", "kyoto"), NOT_TOLD)


@pytest.mark.parametrize(
    "lie", [{"loss": -1e30}, {"loss": 1e30}, {"loss.weight": 1e30}, {"loss.weight": -5.0}, {"made_up": 7.0}]
)
@pytest.mark.parametrize("buffer", [None, fc.Buffer(size=4)])
def test_a_metric_in_a_report_that_cannot_be_is_left_out_by_name(lie, buffer, caplog, tmp_path):
    def change(name, said):
        return (lie, None) if name == "mayo" and said.header.kind == "update" else None

    with federation(fedavg(), lie=change, buffer=buffer, folder=tmp_path) as (fed, _, _):
        _, metrics = fed.run(fed.init(jax.random.key(0)), range(4))
    assert float(metrics["refused"].total) == 0 and "made_up" not in metrics
    (name,) = lie
    assert f"the metric {name.partition('.')[0]!r} in the report of mayo does not count" in caplog.text
    assert (
        float(metrics["loss"].weight) == 2 * (23 + 1 + 4 + (5 if name == "made_up" else 0))
        and 0 < float(metrics["loss"]) < 10
    )


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_metric_that_is_not_finite_at_one_client_is_pooled_over_the_others_in_simulator_and_federation_alike(
    value,
):
    task = fc.models.linear(features=3)
    last = jnp.asarray(columns("numbers")[3]["x"][:1])
    odd = task._replace(
        metrics=lambda params, batch: {"odd": jnp.where((batch["x"] == last).all(-1), value, batch["y"])}
    )
    here = fc.Clients.from_list(columns("numbers"), ids=list(NAMES))
    params = task.init(jax.random.key(0))
    with federation(fc.compose(fc.algorithms.fedavg(odd, optax.sgd(0.1))), "numbers") as (fed, _, _):
        there, crossed = (
            fed.evaluate(fed.init(jax.random.key(0), params=params)),
            fed.cross_evaluate({"m": params}),
        )
    found = [(fc.evaluate(odd, params, here), fc.cross_evaluate(odd, {"m": params}, here)), (there, crossed)]
    expected = np.concatenate([data["y"] for data in columns("numbers")[:3]]).mean()
    for one, cross in found:
        assert one.pooled["odd"] == pytest.approx(expected, rel=1e-5) and cross.pooled("odd")[
            0
        ] == pytest.approx(expected, rel=1e-5)
        assert one.without == {"odd": {"kyoto": NOT_FINITE}} and dict(cross.without) == {
            ("odd", "m", "kyoto"): NOT_FINITE
        }
        assert "odd" in cross.table("odd") and "odd of m at kyoto: it is not finite there" in cross.table(
            "odd"
        )


def test_what_nobody_tells_is_not_a_number_and_clients_without_examples_are_not_named():
    task = fc.models.linear(features=3)
    clients = fc.Clients.from_list(
        [columns("numbers")[0], {k: v[:0] for k, v in columns("numbers")[0].items()}]
    )
    diverged = jax.tree.map(lambda x: x + jnp.nan, task.init(jax.random.key(0)))
    found = fc.evaluate(task, diverged, clients)
    assert math.isnan(found.pooled["loss"]) and list(found.without["loss"]) == [str(clients.ids[0])]
    assert not fc.evaluate(task, task.init(jax.random.key(0)), clients).without
