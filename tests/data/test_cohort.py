"""The clients of a round as the engine takes them: positions, each once, with counts."""

import numpy as np
import pytest

from fedjax_core.data.cohort import Cohort, as_cohort


def test_as_cohort_takes_lists_arrays_and_cohorts():
    cohort = as_cohort([4, 0, 2], population=5)
    assert cohort.clients.tolist() == [4, 0, 2] and cohort.counts.tolist() == [1, 1, 1]
    assert cohort.clients.dtype == cohort.counts.dtype == np.int32
    drawn = Cohort(np.array([1, 3]), np.array([2, 1]))
    assert as_cohort(drawn, 5).counts.tolist() == [2, 1]
    assert as_cohort([], 5).clients.shape == (0,)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([0, 5], ValueError, "names client 5, but the population is clients 0 to 4"),
        ([-1, 2], ValueError, "names client -1"),
        (np.array([2**32 + 1]), ValueError, "names client 4294967297"),
        ([1, 3, 1], ValueError, r"client 1 more than once.*uniform\(replace=True\)"),
        ([0.0, 1.0], TypeError, "integers.* but got float64"),
        (np.array([True, False]), TypeError, r"mask of bools; use np\.flatnonzero\(mask\)"),
        ([[0, 1]], ValueError, r"one-dimensional, \[K\], but got shape \[1, 2\]"),
        (3, ValueError, "one-dimensional"),
        (
            Cohort(np.array([0, 1]), np.array([1])),
            ValueError,
            "counts must be an integer of at least 1 for each of the 2 clients",
        ),
        (Cohort(np.array([0, 1]), np.array([1, 0])), ValueError, "counts must be an integer of at least 1"),
        (Cohort(np.array([1, 1]), np.array([1, 1])), ValueError, "client 1 more than once"),
    ],
)
def test_as_cohort_refuses(value, error, message):
    with pytest.raises(error, match=message):
        as_cohort(value, population=5)
