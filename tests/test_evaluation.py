import numpy as np
import pytest

from fedjax_core.evaluation import NOT_FINITE, NOT_TOLD, crossed, pool


def test_the_table_reads_as_it_was_counted():
    found = crossed(
        ["a", "bb"],
        ["one", "two"],
        {(0, 0): (2, {"loss": 3.0}), (0, 1): (6, {"loss": 3.0}), (1, 0): (2, {"loss": 1.0}), (1, 1): "no"},
    )
    assert found.pooled("loss").tolist() == [0.75, 0.5]  # not means of means
    lines = str(found).splitlines()
    assert lines[0].split() == ["loss", "of", "one", "two", "pooled"] and lines[1].split() == [
        "a",
        "1.5",
        "0.5",
        "0.75",
    ]
    assert lines[2].split() == ["bb", "0.5", "-", "0.5"] and lines[3] == "bb at two: no"


def test_a_model_is_pooled_over_sites_by_the_rule_of_an_evaluation():
    """Left out and named: a site that withholds the metric, one whose sum is not finite, one that is
    doubted."""
    said = {
        (0, 0): (2, {"loss": 3.0}),
        (0, 1): (6, {"hits": 1.0}),
        (0, 2): (2, {"loss": np.inf}),
        (0, 3): (4, {"loss": 9.0}),
        (0, 4): "no",
    }
    found = crossed(["m"], list("abcde"), said, {(0, 3, "loss"): "odd"})
    expected = {"b": NOT_TOLD, "c": NOT_FINITE, "d": "odd"}
    assert {site: why for (of, _, site), why in found.without.items() if of == "loss"} == expected
    sums = np.array([3.0, np.nan, np.inf, 9.0, np.nan])
    value, without = pool(list("abcde"), found.counts[0], sums, {1: NOT_TOLD, 3: "odd"})
    assert without == expected and value == 1.5 and found.pooled("loss").tolist() == [value]
    with pytest.raises(KeyError, match="there is no metric 'auc'"):
        found.pooled("auc")
