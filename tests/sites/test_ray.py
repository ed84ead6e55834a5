"""Four hospitals as four processes under Ray follow the stored trajectory of the heart study; an open Ray is refused."""

import jax
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.data.sources.heart_disease import HOSPITALS
from fedjax_core.sites.coordinator import Federation
from fedjax_core.sites.site import SiteFile
from tests.experiments.test_heart_golden import STEPS, golden, study

__all__ = ["golden", "study"]


@pytest.mark.parametrize("strategy", ["Scaffold"])
def test_four_site_processes_follow_the_stored_weights(golden, study, strategy, tmp_path):
    composed = fc.compose(study.strategies(fc.models.logistic(features=13, classes=1))[strategy])
    sites = [
        SiteFile(
            name=name,
            data={"x": golden[f"x_train_{i}"], "y": golden[f"y_train_{i}"][:, 0].astype(np.int32)},
            order=golden["order"][i : i + 1],
            folder=tmp_path / name,
        )
        for i, name in enumerate(HOSPITALS)
    ]
    with Federation(composed, sites, batch_size=4, steps=STEPS, folder=tmp_path / "coordinator") as fed:
        state = fed.init(jax.random.key(0), params=study.unflat(golden["init"]))
        for expected in golden[f"traj_{strategy}"][1:]:
            state, seen = fed.run(state, np.arange(4))
            np.testing.assert_allclose(study.flat(state.params), expected, rtol=0, atol=1e-5)
        assert float(seen["clients"]) == 4
