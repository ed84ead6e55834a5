"""Steps of preprocessing that do not fit their columns are refused by name; what each step does is in its own
tests."""

import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.data import preprocess
from fedjax_core.data.preprocess import Impute, OrdinalEncode, Standardise


@pytest.mark.parametrize(
    ("steps", "columns", "said"),
    [
        ([Standardise("z")], {"x": np.ones((2, 1))}, "Standardise is for the column 'z', and there are x"),
        ([Standardise("x"), Impute("x")], {"x": np.ones((2, 1))}, "column 'x' has two steps"),
        (
            [Standardise("x")],
            {"x": np.array([[1.0], [np.inf]])},
            "column 'x' holds an infinity, .* in row 1.* missing values are NaN",
        ),
        ([OrdinalEncode("x")], {"x": np.ones(2)}, "OrdinalEncode needs a column of text or of whole numbers"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(steps, columns, said):
    with pytest.raises(ValueError, match=said):
        preprocess.fit(steps, fc.Clients.from_list([columns], allow_nan=True))
