"""What a site tells of a statistic is no more than it can be: finite, and its counts between none and its
examples."""

import numpy as np
import pytest

from fedjax_core.sites.coordinator.statistics import BadSums, _checked
from fedjax_core.stats.base import count

SUMS = {"rows": count(20), "events": count(3), "x": np.array([-4.0, 1e6])}


def test_sums_that_can_be_are_taken_as_they_are():
    assert _checked(SUMS, 20) is SUMS


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"rows": count(21)}, "its sums say 21 rows, and it has 20 examples"),
        # with the rows of the others there would be next to none to divide by
        (
            {"rows": count(-20)},
            "its sums say -20 rows",
        ),
        ({"events": count(10**15)}, "its sums say 1000000000000000 events"),
        ({"rows": np.array([15, 6])}, "of more rows than it has examples"),
        ({"x": np.array([np.nan, 0])}, "'x' hold NaN"),
    ],
)
def test_sums_that_cannot_be_are_refused(odd, said):
    with pytest.raises(BadSums, match=said):
        _checked(SUMS | odd, 20)
