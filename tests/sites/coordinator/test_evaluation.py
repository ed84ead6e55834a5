"""Every model at every site: the numbers of each model alone at each site's examples, and a reason where
there are none."""

import dataclasses

import jax
import numpy as np
import pytest

import fedjax_core as fc
from tests.sites.federations import NAMES, columns, federation, site_files
from tests.zoo import round_of

POLICY = (
    'site = "{}"\n[tasks]\nmode = "first-use"\n[leaving]\nfields = ["weight", "examples", "data", "loss"]\n'
    '[evaluation]\nmodels = "any"\n{}'
)


@pytest.fixture(scope="module")
def composed():
    return round_of("fedavg")


@pytest.fixture(scope="module")
def models(composed):
    init = composed.algorithm.task.init
    return {
        "global": init(jax.random.key(1)),
        "charite": init(jax.random.key(2)),
        "nan": jax.tree.map(lambda x: x + np.nan, init(jax.random.key(3))),
    }


def test_sites_and_simulator_give_each_models_own_numbers(composed, models):
    population = fc.Clients.from_list(columns(), ids=list(NAMES))
    at_hand = fc.cross_evaluate(composed.algorithm.task, models, population)
    with federation(composed) as (fed, _, _):
        at_sites = fed.cross_evaluate(models)
    for found in (at_hand, at_sites):
        assert found.sites == NAMES and found.models == tuple(models) and not found.reasons
        assert found.counts.tolist() == [population.sizes.tolist()] * 3
        for m, params in enumerate(list(models.values())[:2]):
            expected = fc.evaluate(composed.algorithm.task, params, population)
            for metric, pooled in expected.pooled.items():
                np.testing.assert_allclose(found.values(metric)[m], expected.clients[metric], rtol=1e-6)
                assert found.pooled(metric)[m] == pytest.approx(pooled, rel=1e-6)
        assert np.isnan(found.values("loss")[2]).all() and np.isnan(found.pooled("loss")[2])
        assert [(model, site) for metric, model, site in found.without if metric == "loss"] == [
            ("nan", site) for site in NAMES
        ]
        assert f"loss of nan at {NAMES[0]}: it is not finite there" in found.table("loss")


def test_who_does_not_answer_is_a_hole_with_its_reason(composed, models, tmp_path):
    files, quiet = [], {"charite": "", "oslo": "[minimum]\nexamples = 1\n"}
    for file in site_files():
        path = tmp_path / f"{file.name}.toml"
        path.write_text(POLICY.format(file.name, quiet.get(file.name, "")))
        files.append(dataclasses.replace(file, policy=path))
    with federation(composed, files=files) as (fed, _, _):
        (tmp_path / "mayo.toml").write_text("paused = true\n" + POLICY.format("mayo", ""))
        found = fed.cross_evaluate({"global": models["global"]})
    population = fc.Clients.from_list([one for i, one in enumerate(columns()) if NAMES[i] != "mayo"])
    assert found.pooled("loss")[0] == pytest.approx(
        fc.evaluate(composed.algorithm.task, models["global"], population).pooled["loss"]
    )
    assert found.counts[0].tolist() == [23, 0, 1, 4] and np.isnan(found.values("loss")[0, 1])
    assert (
        list(found.reasons) == [("global", "mayo")]
        and "is paused by its staff" in found.reasons["global", "mayo"]
    )
    assert "global at mayo: mayo is paused" in str(found)


def test_another_tasks_model_is_refused_before_it_is_sent(composed):
    with (
        federation(composed) as (fed, _, transport),
        pytest.raises(ValueError, match="model 'odd' is not one of this federation's task"),
    ):
        sent = len(transport.sent)
        try:
            fed.cross_evaluate({"odd": {"w": np.zeros((7, 3), np.float32)}})
        finally:
            assert len(transport.sent) == sent
