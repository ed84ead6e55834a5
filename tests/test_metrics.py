import re

import jax
import numpy as np
import pytest

from fedjax_core.metrics import TAKEN, Mean, Sum, check_client_metrics, check_names, mean, summary

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
    assert (
        summary(found)
        == summary(jax.device_put(found))
        == {"loss": float(np.float32(1) / np.float32(3)), "rounds": 2.0}
    )


def test_rounds_that_are_stacked_stay_so_on_the_host():
    assert Mean(np.arange(3, dtype=np.float32), np.full(3, 2, np.float32)).value.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "name", [*sorted(TAKEN), "loss.weight", "", "5_year", "hits\n", "größe", "x" * 57, 3, None]
)
def test_a_name_that_means_something_else_somewhere_is_refused(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        check_names(["loss", name], "the task")


def test_names_in_use_are_fine():
    check_names(["loss", "AUROC", "own_loss", "top-5", "x" * 56], "the task")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"hits": mean(np.ones(2)), "weight": mean(np.ones(2))}, "'weight'"),
        ({"hits": Mean(np.ones(2), np.ones(2))}, r"'hits'.*\[2\]"),
        ({"hits": np.float32(1)}, "'hits' of the step is a float32"),
        (None, "NoneType"),
    ],
)
def test_what_a_step_may_not_give(found, said):
    with pytest.raises((TypeError, ValueError), match=said):
        check_client_metrics(found, "the step")


def test_a_summary_of_several_rounds_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'loss' has \[3\] numbers.*take one"):
        summary({"loss": Mean(np.ones(3, np.float32), np.ones(3, np.float32))})
