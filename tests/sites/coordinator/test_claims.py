"""A number of examples that is only claimed gives no power over the model: it was agreed on, or is near what
the others have."""

import logging

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.coordinator.claims import dominating, doubtful
from fedjax_core.sites.coordinator.collect import Paused
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.site_file import SiteFile
from tests.sites.federations import NAMES, federation
from tests.zoo import fedavg


@pytest.mark.parametrize(
    ("claimed", "agreed", "refused"),
    [
        ({"a": 1}, {}, ()),
        ({"a": 1, "b": 100}, {}, ()),
        ({"a": 1, "b": 101}, {}, ("b",)),
        ({"a": 10, "b": 1000, "c": 101_000}, {}, ()),
        ({"a": 50, "b": 60, "m": 10**15}, {}, ("m",)),
        ({"a": 50, "b": 60, "m": 10**15, "n": 10**15}, {}, ("m", "n")),  # who do not vouch for each other
        ({"a": 50, "b": 60, "m": 10**15}, {"m": 10**15}, ()),
        ({"a": 50, "b": 60, "m": 61}, {"m": 60}, ("m",)),
        ({"a": 50, "m": 10**9}, {"a": 50, "m": 500}, ("m",)),
        ({"big": 10**6, "a": 5, "b": 6}, {"big": 10**6}, ()),
        # an agreed one is among those who are compared with
        (
            {"a": 5, "b": 600, "big": 10**6},
            {"big": 10**6},
            (),
        ),
    ],
)
def test_who_is_not_believed(claimed, agreed, refused):
    for order in (claimed, dict(reversed(claimed.items()))):
        found = doubtful(order, agreed)
        assert sorted(found) == sorted(refused)
        assert all(name in reason and "[examples]" in reason for name, reason in found.items())


def test_who_dominates_is_told():
    assert dominating({"a": 10, "b": 20, "c": 970}, {}) == ("c", 0.97)
    assert dominating({"a": 10, "b": 20, "c": 970}, {"c": 970}) is None
    assert dominating({"a": 40, "b": 20, "c": 40}, {}) is None and dominating({"a": 1, "b": 9}, {}) is None


def described_as(site, count):
    return lambda name, said: (
        ({"examples": count}, None) if name == site and said.header.kind == "description" else None
    )


@pytest.mark.parametrize(
    ("count", "agreed", "said"),
    [
        (
            6,
            {"mayo": 5},
            r"mayo says that it has 6 examples, and the roster agrees to at most 5 (\[examples\])",
        ),
        (
            10**15,
            {},
            "more than 100 times what the smaller sites have together (28); where that is true, agree on a largest number",
        ),
    ],
)
def test_a_run_goes_on_without_a_site_whose_number_is_not_believed(count, agreed, said, tmp_path, caplog):
    with federation(fedavg(), lie=described_as("mayo", count), agreed=agreed, folder=tmp_path) as (fed, _, _):
        state, metrics = fed.run(fed.init(jax.random.key(0)), range(4))
        found = fed.evaluate(state)
    assert said.replace("\\", "") in caplog.text and said.replace("\\", "") in fed.lacked(1)["mayo"]
    assert float(metrics["examples"].total) == 23 + 1 + 4 and found.sizes.tolist() == [23, 0, 1, 4]
    assert "mayo" not in (tmp_path / "coordinator" / "run-sites.json").read_text()


def test_a_run_that_would_have_too_few_without_it_does_not_begin():
    said = r"write `mayo = 1000000000000000` under \[examples\]"
    with (
        pytest.raises(Paused, match=said),
        federation(fedavg(), lie=described_as("mayo", 10**15), rules=Rules(quorum=4)),
    ):
        pass


def test_who_has_most_of_the_examples_is_said_at_the_start(caplog):
    caplog.set_level(logging.WARNING, "fedjax_core")
    with federation(fedavg()):
        assert f"{NAMES[0]} has 70 % of the examples of 4 sites" in caplog.text
    caplog.clear()
    with federation(fedavg(), agreed={NAMES[0]: 23}) as (fed, _, _):
        assert not caplog.text and isinstance(fed, fc.Federation)


def test_sites_of_this_process_are_counted_by_it_and_not_doubted():
    data = {
        name: {"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)}
        for name, n in (("charite", 3), ("oslo", 301))
    }
    composed = fc.compose(fc.algorithms.fedavg(fc.models.linear(features=2), local=optax.sgd(0.1)))
    sites = [SiteFile(name=name, data=columns) for name, columns in data.items()]
    with fc.Federation(composed, sites, batch_size=2, transport="in-process") as fed:
        assert fed.clients.sizes.tolist() == [3, 301]
