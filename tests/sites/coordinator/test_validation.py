"""Each thing that can be wrong with an authentic update is found, by its own code, and nothing is raised."""

import math

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace

from fedjax_core.sites.coordinator.validation import ExpectedUpdate, Verdict, validate
from fedjax_core.sites.wire.tensors import measure
from fedjax_core.sites.wire.trees import LeafSpec, leaf_specs
from tests.sites.parties import TENSORS, envelope

FIELDS = {"weight": 303.0, "examples": 303, "data": "f00d"}
EXPECTED = ExpectedUpdate(
    run="heart-1",
    round=3,
    exchange=0,
    config="ab12",
    kinds=leaf_specs({"w": TENSORS["['w']"], "b": TENSORS["['b']"]}),
    data={"charite": "f00d"},
    max_weight=1000.0,
    max_norm=100.0,
)


def weights(*numbers, dtype=np.float32):
    return TENSORS | {"['w']": np.array(numbers, dtype).reshape(2, 2)}


def test_a_good_update_is_accepted_with_its_norm():
    verdict = validate(envelope(), EXPECTED)
    assert verdict == Verdict(True, "accepted", "", math.sqrt(1 + 4 + 0.25 + 9 + 16 + 25))


def test_a_report_is_of_as_many_clients_as_its_site_said_to_be():
    expected = replace(EXPECTED, clients=3)
    codes = [
        validate(envelope(fields=FIELDS | more), expected).code
        for more in ({"clients": 3}, {"clients": 300}, {})
    ]
    assert codes == ["accepted", "wrong-clients", "wrong-clients"]


def test_later_counts_are_bounded_by_what_the_site_said_first():
    expected = replace(EXPECTED, max_examples=303, max_steps=20, limited=True)
    done = {
        "steps_done": 5.0,
        "steps_done.weight": 20.0,
        "examples_seen": 80.0,
        "examples_seen.weight": 303.0,
    }
    more = (
        {}, {"examples": 304}, {"examples": -1}, {"steps_done.weight": 21.0}, {"examples_seen.weight": 1e15}, {"steps_done": 21.0},
        {"examples_seen": math.nan}, {"examples": 10, "examples_seen.weight": 303.0},
    )  # fmt: skip
    codes = [validate(envelope(fields=FIELDS | done | one), expected).code for one in more]
    assert codes == ["accepted", "too-many-examples", "too-many-examples", *["bad-steps"] * 4, "accepted"]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"kind": "metrics"}, "wrong-kind", "of kind 'metrics', and an update is expected"),
        ({"run": "heart-0"}, "wrong-run", "of run 'heart-0', and this is 'heart-1'"),
        ({"round": 2}, "wrong-round", "of round 2, and this is 3"),
        ({"exchange": 1}, "wrong-exchange", "of exchange 1 of the round, and this is 0"),
        ({"config": "ab13"}, "wrong-config", "runs configuration 'ab13', and the run has 'ab12'"),
        ({"fields": FIELDS | {"weight": -1.0}}, "bad-weight", "not between 0 and the bound of 1000"),
        ({"fields": FIELDS | {"weight": 1e300}}, "bad-weight", "not between 0 and the bound of 1000"),
        ({"fields": FIELDS | {"weight": math.nan}}, "bad-weight", "not between 0 and the bound of 1000"),
        ({"fields": FIELDS | {"weight": math.inf}}, "bad-weight", "not between 0 and the bound of 1000"),
        ({"fields": FIELDS | {"weight": 303}}, "bad-field", "needs the field 'weight' of type float"),
        ({"fields": FIELDS | {"examples": 303.0}}, "bad-field", "needs the field 'examples' of type int"),
        ({"fields": {"weight": 303.0, "examples": 303}}, "bad-field", "needs the field 'data' of type str"),
        ({"fields": FIELDS | {"data": "beef"}}, "changed-data", "'charite' have another fingerprint than before, which the site does not"),
        ({"fields": FIELDS | {"data": "beef", "data_was": "d00f"}}, "changed-data", "another fingerprint than before"),
        ({"tensors": {}}, "wrong-structure", "missing \"['b']\", \"['w']\""),
        ({"tensors": TENSORS | {"x": np.ones(1)}}, "wrong-structure", "unexpected 'x'"),
        ({"tensors": TENSORS | {"['w']": np.ones((2, 3), np.float32)}}, "wrong-shape", "['w'] has shape [2, 3] instead of [2, 2]"),
        ({"tensors": weights(1, 2, 3, 4, dtype=np.float64)}, "wrong-dtype", "['w'] is float64 instead of float32"),
        ({"tensors": weights(1, 2, np.nan, 4)}, "not-finite", "tensor ['w'] holds NaN or an infinity"),
        ({"tensors": weights(1, 2, -np.inf, 4)}, "not-finite", "tensor ['w'] holds NaN or an infinity"),
        ({"tensors": weights(1, 2, 3, 1e4)}, "norm-too-large", "norm of the update is above the bound of 100"),
        ({"tensors": weights(1, 2, 3, 3e38)}, "norm-too-large", "norm of the update is above the bound of 100"),
        ({"tensors": TENSORS | {"['b']": np.array([0, 2**31 - 1], np.int32)}}, "norm-too-large", "above the bound of 100"),
    ],
)  # fmt: skip
def test_quarantined(changes, code, said):
    verdict = validate(envelope(**changes), EXPECTED)
    assert not verdict.accepted and verdict.code == code and said in verdict.reason
    assert "303" not in verdict.reason and "1e+" not in verdict.reason
    assert (verdict.norm is not None) == (code == "norm-too-large")


def test_a_declared_change_of_data_is_accepted_and_told():
    verdict = validate(envelope(fields=FIELDS | {"data": "beef", "data_was": "f00d"}), EXPECTED)
    assert verdict.accepted and verdict.code == "data-change-declared"


def test_a_site_heard_for_the_first_time_has_no_former_data():
    assert validate(envelope(sender="mayo", fields=FIELDS | {"data": "beef"}), EXPECTED).code == "accepted"


def test_an_update_of_another_broadcast_is_set_aside():
    expected = replace(EXPECTED, answers="aa")
    assert validate(envelope(answers="aa"), expected).accepted
    for answers in ("ab", ""):
        assert validate(envelope(answers=answers), expected).code == "wrong-model"


@pytest.mark.parametrize(
    "dtype",
    [np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8, np.uint64, np.complex64],
)
def test_the_norm_is_that_of_the_numbers_in_any_dtype(dtype):
    assert measure({"a": np.array([[3], [0]]).astype(dtype), "b": np.array([4, 0]).astype(dtype)}) == 5


def test_the_norm_of_long_tensors_is_exact():
    assert measure({"a": np.full(3 << 20, 3e-4, np.float32)}) == pytest.approx(
        float(np.float32(3e-4)) * math.sqrt(3 << 20), rel=1e-12
    )
    assert measure({"a": np.ones((0, 3)), "b": np.array(True), "c": np.float32(2.0).reshape(())}) == 2


def test_finite_numbers_of_any_size_are_finite():
    assert measure({"a": np.array([1e200])}) == math.inf


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.complex64]
)
def test_one_bad_number_among_many_is_found(dtype):
    numbers = np.zeros((1 << 20) + 3, dtype)
    numbers[-1] = np.nan
    expected = replace(EXPECTED, kinds={"a": LeafSpec(numbers.dtype.name, numbers.shape)})
    assert validate(envelope({"a": numbers}), expected).code == "not-finite"
