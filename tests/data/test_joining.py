"""The columns of clients one after another: order, offsets, and what is not alike by client and name."""

import numpy as np
import pytest

from fedjax_core.data.joining import join, rows_of

IDS = np.array(["charite", "mayo"])


def test_columns_follow_one_another_with_their_offsets_and_features_in_one_order():
    columns, offsets = join(
        [{"x": np.ones((2, 1)), "y": np.arange(2)}, {"x": np.zeros((1, 1)), "y": np.array([7])}], IDS, {}
    )
    assert (
        offsets.tolist() == [0, 2, 3] and columns["y"].tolist() == [0, 1, 7] and columns["x"].shape == (3, 1)
    )


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"z": np.ones(1)}, r"client 1 \(id 'mayo'\): has columns z, but client 0 has x"),
        (
            {"x": np.ones(1, np.int32)},
            r"client 1 \(id 'mayo'\): column 'x' is int32\[1\], but client 0's is float64\[2\]",
        ),
        ({"x": np.ones((1, 2))}, r"column 'x' is float64\[1, 2\], but client 0's is float64\[2\]"),
    ],
)
def test_a_client_that_is_not_like_the_first_is_named(second, said):
    with pytest.raises(ValueError, match=said):
        join([{"x": np.ones(2)}, second], IDS, {})


@pytest.mark.parametrize(
    ("parts", "error", "said"),
    [
        ([], ValueError, "parts holds no clients"),
        ([[0], [2]], ValueError, "part 1 names row 2, but the columns have rows 0 to 1"),
        ([[-1]], ValueError, "part 0 names row -1"),
        (
            [[True, False]],
            TypeError,
            r"part 0 must be a one-dimensional integer array of row numbers, got bool\[2\].*np.flatnonzero",
        ),
    ],
)
def test_rows_that_are_not_there_are_named(parts, error, said):
    with pytest.raises(error, match=said):
        rows_of(parts, 2)
    assert rows_of([[1], [], [0, 1]], 2).tolist() == [1, 0, 1]
