"""Differential privacy at four site processes under Ray ends where lanes end if the secrets are those of a
simulation: DP-SGD but for the rounding of a mean, noise that sites add together under masks bit for bit."""

import jax
import numpy as np
import pytest
import ray

import fedjax_core as fc
from fedjax_core.sites.transport.ray_start import NAMESPACE
from tests.sites.coordinator.test_distributed_noise import NOISY as TOGETHER
from tests.sites.federations import BATCH, EPOCHS, NAMES, simulator, site_files
from tests.sites.site.test_protecting_steps import NOISY as STEPS

COHORT = [0, 1, 2, 3]


def take_the_runs_key(site, of_the_report):
    """Has the process of a site take the run's key for its secret: that of its steps, or that of its
    report."""

    def patch(self):
        from fedjax_core import keys
        from fedjax_core.sites.protocol import request

        of_a_site = request.draws

        def draws(header, address, secret, of):
            found = of_a_site(header, address, secret, of)
            client = keys.client(found.run_key(), header.round, address)
            of_report = np.asarray(jax.random.key_data(keys.secret(client, header.exchange)))
            return found._replace(secret=of_report if of_the_report else found.words)

        request.draws = draws

    ray.get(ray.get_actor(f"site-{site}", namespace=NAMESPACE).__ray_call__.remote(patch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("composed", "of_the_report", "tolerance"),
    [(STEPS, False, 1e-6), (TOGETHER, True, 0)],
    ids=["DP-SGD", "Skellam, secure"],
)
def test_four_site_processes_with_the_same_secrets_end_where_lanes_do(
    composed, of_the_report, tolerance, tmp_path
):
    sim = simulator(composed)
    expected = sim.init(jax.random.key(1))
    with fc.Federation(
        composed,
        site_files(folder=tmp_path),
        batch_size=BATCH,
        epochs=EPOCHS,
        folder=tmp_path / "coordinator",
    ) as fed:
        state = fed.init(jax.random.key(1))
        for name in NAMES[:4]:
            take_the_runs_key(name, of_the_report)
        for _ in range(2):
            state, seen = fed.run(state, COHORT)
            expected, _ = sim.run(expected, COHORT)
    assert "loss" not in seen
    for x, y in zip(*map(jax.tree.leaves, (state.params, expected.params)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)
