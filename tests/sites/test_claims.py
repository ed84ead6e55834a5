"""A number of examples that is only claimed gives no power over the model: it was agreed on, or is near what the others have."""

import logging

import pytest

import fedjax_core as fc
from fedjax_core.sites.claims import dominating, doubtful
from fedjax_core.sites.collect import Paused
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
        ({"a": 5, "b": 600, "big": 10**6}, {"big": 10**6}, ()),  # an agreed one is among those who are compared with
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
    return lambda name, said: ({"examples": count}, None) if name == site and said.header.kind == "description" else None


def test_a_site_that_says_more_than_agreed_is_refused_by_name(tmp_path):
    said = r"mayo did not say how many examples .* mayo says that it has 6 .* agrees to at most 5 \(\[examples\]\)"
    lie = described_as("mayo", 6)
    with pytest.raises(Paused, match=said), federation(fedavg(), lie=lie, agreed={"mayo": 5}, folder=tmp_path):
        pass
    assert not (tmp_path / "coordinator" / "run-sites.json").exists()


def test_a_site_that_says_absurdly_much_is_refused_with_the_way_out():
    said = r"mayo says .* more than 100 times .*\(28\).* write `mayo = 1000000000000000` under \[examples\]"
    with pytest.raises(Paused, match=said), federation(fedavg(), lie=described_as("mayo", 10**15)):
        pass


def test_who_has_most_of_the_examples_is_said_at_the_start(caplog):
    caplog.set_level(logging.WARNING, "fedjax_core")
    with federation(fedavg()):
        assert f"{NAMES[0]} has 70 % of the examples of 4 sites" in caplog.text
    caplog.clear()
    with federation(fedavg(), agreed={NAMES[0]: 23}) as (fed, _, _):
        assert not caplog.text and isinstance(fed, fc.Federation)
