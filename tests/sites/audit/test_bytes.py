"""A site's ledger has the bytes of both ways, and compression makes them fewer by what the metrics count."""

import jax
import numpy as np
import optax

import fedjax_core as fc
from fedjax_core.sites.audit import show
from fedjax_core.sites.site_file import SiteFile

FEATURES, SITES = 3000, 2
NUMBERS = FEATURES + 1


def one_round(folder, **pieces):
    """(bytes of the request, of the reply) in the ledger of the first site, and the metrics of the round."""
    composed = fc.compose(
        fc.algorithms.fedavg(fc.models.linear(features=FEATURES), optax.sgd(1e-4)), **pieces
    )
    data = {"x": np.ones((4, FEATURES), np.float32), "y": np.ones(4, np.float32)}
    files = [SiteFile(name=f"site{i}", data=data, folder=folder / f"site{i}") for i in range(SITES)]
    with fc.Federation(
        composed, files, batch_size=4, epochs=1, transport="in-process", folder=folder / "coordinator"
    ) as fed:
        _, metrics = fed.run(fed.init(jax.random.key(0)), range(SITES))
    (left,) = [
        one
        for one in show(folder / "site0" / "audit")
        if one.what == "left" and one.about["kind"] == "update"
    ]
    return left.about["request_bytes"], left.about["bytes"], metrics


def test_half_the_bits_both_ways_are_half_the_bytes_in_the_ledger(tmp_path):
    down, up, metrics = one_round(tmp_path / "plain")
    assert 4 * NUMBERS <= down < 4 * NUMBERS + 1500 and 4 * NUMBERS <= up < 4 * NUMBERS + 2500
    half = fc.uplink.half()
    less_down, less_up, metrics = one_round(tmp_path / "half", uplink=half, downlink=half)
    for saved, bits in ((down - less_down, "bits_down"), (up - less_up, "bits_up")):
        assert float(metrics[bits].total) == 16 * NUMBERS * SITES
        assert abs(saved - 2 * NUMBERS) < 200  # names of tensors, and two metrics of the uplink, differ
