"""DP-SGD at real sites: its noise is of the site's own secret, the same for the same request, and each draw
is in the audit log."""

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.audit import show
from fedjax_core.sites.site_file import SiteFile
from tests.sites.federations import (
    BATCH,
    EPOCHS,
    NAMES,
    columns,
    federation,
    simulator,
    with_the_secrets_of_a_simulation,
)
from tests.zoo import task

PRIVATE = fc.privacy.example_level(clip=1.0, noise=2.0, batch_size=BATCH, rounds=4, epochs=EPOCHS, delta=1e-3)
NOISY = fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.1), gradient=PRIVATE.gradient))
SITES = [0, 1]


def begun(fed):
    return fed.init(jax.random.key(1))


def flat(state):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])


def test_with_the_same_secrets_sites_end_bit_for_bit_where_lanes_do(monkeypatch):
    with_the_secrets_of_a_simulation(monkeypatch)
    lanes = simulator(NOISY)
    expected, _ = lanes.run(begun(lanes), SITES)
    with federation(NOISY) as (fed, _, _):
        state, seen = fed.run(begun(fed), SITES)
    np.testing.assert_array_equal(flat(state), flat(expected))
    assert "loss" not in seen


def test_noise_is_of_the_sites_own_secret_and_every_draw_is_recorded(tmp_path):
    """The same request gets the same bytes, of one draw; one of another model, as of a restored run, another
    draw."""
    with federation(NOISY, folder=tmp_path) as (fed, _, _):
        start = begun(fed)
        first, _ = fed.run(start, SITES)
        again, _ = fed.run(start, SITES)
        np.testing.assert_array_equal(flat(first), flat(again))
        moved = start._replace(
            server=start.server._replace(params=jax.tree.map(lambda x: x + 1e-3, start.params))
        )
        fed.run(moved, SITES)
    with federation(NOISY) as (fed, _, _):
        others, _ = fed.run(begun(fed), SITES)
    assert (flat(first) != flat(others)).all(), "other sites' secrets, of the same run's key"
    left = [
        one.about
        for one in show(tmp_path / NAMES[0] / "audit", what="left")
        if one.about.get("kind") == "update"
    ]
    assert len(left) >= 2 and len({one["draw"] for one in left}) == 2


def test_departments_which_draw_by_the_runs_key_are_refused():
    ward = np.arange(len(columns()[0]["y"])) % 2
    files = [
        SiteFile(name=NAMES[0], data=columns()[0] | {"ward": ward}, departments="ward"),
        SiteFile(name=NAMES[1], data=columns()[1]),
    ]
    with pytest.raises(
        ValueError, match="departments draw by the run's key, which everybody knows: leave departments out"
    ):
        fc.Federation(NOISY, files, batch_size=BATCH, epochs=EPOCHS, transport="in-process", departments=True)


def test_a_promise_that_counts_on_poisson_batches_is_refused_at_sites():
    """They go through their data in passes, of which an epsilon of Poisson samples says too little."""
    sizes = [len(of["y"]) for of in columns()[:2]]
    sampled = fc.privacy.example_level(
        clip=1.0, noise=2.0, batch_size=2, rounds=4, steps=3, sampling="poisson", sizes=sizes, delta=1e-3
    )
    composed = fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.1), gradient=sampled.gradient))
    files = [SiteFile(name=name, data=of) for name, of in zip(NAMES, columns()[:2], strict=False)]
    with pytest.raises(ValueError, match='which tell more: take sampling="passes", or a simulation'):
        fc.Federation(composed, files, batch_size=sampled.cap, steps=3, transport="in-process")


def test_only_steps_that_protect_examples_are_known_as_such():
    from fedjax_core.composition import protecting_steps

    rows = {name: x[:1] for name, x in columns()[0].items()}
    plain = fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.1)))
    micro = fc.privacy.example_level(clip=1.0, noise=2.0, batch_size=BATCH, rounds=4, microbatch=2)
    wrapped = fc.compose(fc.algorithms.fedprox(task(), mu=0.1, local=optax.sgd(0.1), gradient=micro.gradient))
    assert [protecting_steps(one, rows, BATCH) for one in (plain, NOISY, wrapped)] == [
        (False,),
        (True,),
        (True,),
    ]
