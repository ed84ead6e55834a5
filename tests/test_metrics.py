import jax
import numpy as np
import pytest

from fedjax_core.metrics import Mean, Sum, summary

NUMBERS = [(3.7, 1.1), (-1e-5, 7e4), (1.0, 0.0), (np.inf, 2.0), (np.inf, np.inf), (3e38, 1e-5), (0.0, 5.0)]


@pytest.mark.parametrize(("total", "weight"), NUMBERS)
def test_a_mean_has_the_same_bits_on_the_host_as_on_a_device(total, weight):
    here = Mean(np.float32(total), np.float32(weight))
    there = jax.device_put(here)
    assert isinstance(there.value, jax.Array) and here.value.dtype == there.value.dtype == np.float32
    assert here.value.tobytes() == np.asarray(there.value).tobytes()
    assert float(here) == float(there) or (np.isnan(float(here)) and np.isnan(float(there)))


def test_a_summary_is_the_same_of_numbers_of_the_host():
    found = {"loss": Mean(np.float32(1), np.float32(3)), "rounds": Sum(np.array(2, np.int32))}
    assert summary(found) == summary(jax.device_put(found)) == {"loss": float(np.float32(1) / np.float32(3)), "rounds": 2.0}


def test_rounds_that_are_stacked_stay_so_on_the_host():
    assert Mean(np.arange(3, dtype=np.float32), np.full(3, 2, np.float32)).value.tolist() == [0.0, 0.5, 1.0]
