import numpy as np
import pytest

from fedjax_core.checks import at_least


@pytest.mark.parametrize("value", [-1, 1.0, True, np.bool_(True), "1", None])
def test_whole_numbers_only(value):
    with pytest.raises(ValueError, match=r"clients must be a whole number of at least 0, got"):
        at_least(0, rounds=3, clients=value)


@pytest.mark.parametrize("value", [2, np.int32(2), np.array(5)])
def test_any_kind_of_whole_number(value):
    at_least(2, clients=value)
