"""What is given for a column keeps its meaning: missing is NaN or refused, text has one coding for all, 32
bits hold the rest."""

import decimal
import warnings

import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.data import checks
from fedjax_core.data.given import given
from fedjax_core.data.preprocess import Impute, OrdinalEncode, Standardise

FILL = 9.96921e36


def one(x, **rest):
    return fc.Clients.from_list([{"x": x, "y": np.zeros(len(x), np.int32)}], ids=["charite"], **rest)


class Nullable:
    """A column of pandas as far as it matters here: its dtype, which of it is missing, and a way to an
    array."""

    def __init__(self, values, dtype, missing):
        self.values, self.missing = np.asarray(values, dtype), np.asarray(missing)
        self.dtype = type("Extension", (), {"numpy_dtype": np.dtype(dtype)})()

    def isna(self):
        return self.missing

    def __len__(self):
        return len(self.values)

    def to_numpy(self, dtype, na_value=None):
        assert na_value is not None or not self.missing.any()
        return np.where(self.missing, 0 if na_value is None else na_value, self.values).astype(dtype)


@pytest.mark.parametrize(
    "x",
    [
        np.ma.masked_values(np.array([1.0, FILL, 3.0], np.float32), FILL),
        Nullable([1.0, 7.0, 3.0], np.float64, [False, True, False]),
    ],
)
def test_what_is_missing_of_numbers_is_nan(x):
    np.testing.assert_array_equal(one(x, allow_nan=True).columns["x"], [1.0, np.nan, 3.0])
    with pytest.raises(ValueError, match=r"'x' holds nan at client 0 \(id 'charite'\), its row 1"):
        one(x)


def test_a_whole_number_that_is_missing_is_refused_with_its_row():
    for x in (np.ma.array([1, 0, 1], mask=[0, 1, 0]), Nullable([1, 0, 1], np.int64, [False, True, False])):
        with pytest.raises(ValueError, match=r"client 0 \(id 'charite'\): column 'x' has no value in row 1"):
            one(x, allow_nan=True)
    assert (
        given(np.ma.array([1, 0, 1]), "x").tolist()
        == [1, 0, 1]
        == given(Nullable([1, 0, 1], np.int64, [False] * 3), "x").tolist()
    )


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.array([1, decimal.Decimal(2)], object), r"dtype object and holds an object \(int\) in row 0"),
        (np.array(["a", None], object), r"holds no value in row 1"),
        (np.array(["2020-01-01"], "M8[D]"), r"holds dates or times \(datetime64\[D\]\)"),
        (np.array([1], "m8[s]"), "holds dates or times"),
        (np.array([1 + 2j]), "holds complex numbers"),
        (np.array([b"icu"]), "holds bytes"),
        (np.zeros(1, [("a", float)]), "give numbers, truth values or text"),
    ],
)
def test_what_is_no_number_and_no_text_is_refused_by_name(x, said):
    with pytest.raises(TypeError, match=rf"client 0 \(id 'charite'\): column 'x' {said}|client 0 .*{said}"):
        one(x)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.array([1.0, 1e39]), "holds a number of more than 1.8e\\+19 at client 0 .* row 1"),
        (np.array([1.0, 1.7e308]), "holds a number of more than 1.8e\\+19 at client 0 .* row 1"),
        (np.array([1.0, -FILL], np.float32), "holds a number of more than 1.8e\\+19 at client 0 .* row 1"),
        (np.array([1, 2**31]), "holds a whole number that does not fit 32 bits at client 0 .* row 1"),
        (
            np.array([1, 2**32], np.uint64),
            "holds a whole number that does not fit 32 bits at client 0 .* row 1",
        ),
        (
            np.array(["icu", "ear"]),
            r"holds text, and a model needs numbers: fc.preprocess.OrdinalEncode\('x'\)",
        ),
        (1.7e9 + np.arange(50.0) * 3.3, "holds numbers so far from 0"),  # seconds since 1970, of one morning
        # of one year
        (
            1.7e9 + np.random.default_rng(0).integers(0, 3e7, 300).astype(float),
            "holds numbers so far from 0",
        ),
        (
            1_700_000_000 + np.random.default_rng(0).integers(0, 10**6, (300, 2)),
            r"\(number 0 of each row\) holds numbers so far",
        ),
    ],
)
def test_what_32_bits_do_not_hold_is_refused_with_its_place_and_without_its_value(x, said):
    clients = fc.Clients.from_arrays({"x": x}, [0, len(x)], allow_nan=True)
    with pytest.raises(ValueError, match=f"column 'x' *{said}") as caught:
        clients.check_numbers()
    assert "e39" not in str(caught.value) and str(2**31) not in str(caught.value)
    assert clients.with_columns({"x": x, "z": np.ones(len(x))}).without("x").check_numbers() is None


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).normal(size=10_000),
        np.array([0.1 + 0.2, 0.3] * 5),  # the same but for rounding
        np.full(5, 1.7e9 + 1),  # which tells nobody apart
        np.random.default_rng(0).integers(100, 400, 300)
        * 1e9,  # platelets a litre, of which float32 holds every difference
        np.random.default_rng(0).normal(2020, 1, 300),
        # hectopascals, of which many meet in float32, each near where it was
        np.random.default_rng(0).normal(1013, 5, 300_000),
        np.array([2**31 - 1, -(2**31)]),
        np.array([np.nan, np.inf, 1.0]),
        np.arange(16_777_000, 16_778_000),  # one whole number a row may be a name: of a code, or a patient
    ],
)
def test_what_32_bits_hold_is_let_be(x):
    fc.Clients.from_arrays({"x": x}, [0, len(x)], allow_nan=True).check_numbers()


def test_of_a_large_column_blocks_of_rows_from_end_to_end_are_looked_at(monkeypatch):
    monkeypatch.setattr(checks, "_SAMPLE", 6400)
    times = 1.7e9 + np.arange(100_000.0) * 3.3
    some = checks._some(times, 6400)
    assert (
        len(some) == 6400 and (some[0], some[-1]) == (times[0], times[-1]) and (np.diff(some[:100]) < 4).all()
    )
    with pytest.raises(ValueError, match="column 'x' holds numbers so far from 0"):
        one(times).check_numbers()


def test_times_are_standardised_in_64_bits_and_not_filled_in_32():
    times = 1.7e9 + np.arange(50.0) * 3.3
    raw = one(times)
    assert len(np.unique(fc.preprocess.fit([Standardise("x")], raw).apply(raw).columns["x"])) == 50
    with pytest.raises(ValueError, match="column 'x' holds numbers so far from 0"):
        fc.preprocess.fit([Impute("x")], raw).apply(raw)


def test_no_number_becomes_another_in_a_simulator_or_in_evaluation():
    """Also in what is read from files when it is used, and in what is only judged on."""
    import jax
    import optax

    task = fc.models.linear(features=1)
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1)))
    wide = fc.Clients.from_arrays({"x": np.array([[1.0], [1e39]]), "y": np.zeros(2)}, [0, 2], allow_nan=True)
    with pytest.raises(ValueError, match="column 'x' holds a number of more than"):
        fc.Simulator(composed, wide, batch_size=1, epochs=1)
    for column in (wide.columns["x"], np.array([[1], [2**40]])):
        with pytest.raises(ValueError, match="column 'x' holds"), warnings.catch_warnings():
            fc.evaluate(
                task, task.init(jax.random.key(0)), wide.with_columns({"x": column, "y": wide.columns["y"]})
            )


def test_rows_with_numbers_that_32_bits_do_not_hold_are_bad_records():
    from fedjax_core.sites.site.records import usable

    clients = fc.Clients.from_arrays(
        {"x": np.array([1.0, 1e39, np.nan, 4.0, 5.0]), "n": np.array([1, 2, 3, 2**40, 5])},
        [0, 5],
        allow_nan=True,
    )
    task = fc.Task(init=lambda key: 0.0, loss=lambda params, batch, key: batch["x"])
    good, bad = usable(clients, task)
    assert bad.tolist() == [1, 2, 3] and good.columns["n"].tolist() == [1, 5]
    # NaN is filled, any whole number may be coded
    assert usable(clients, task, (Standardise("x"), OrdinalEncode("n")))[1].tolist() == [1]


def test_a_task_does_not_judge_raw_what_preprocessing_makes():
    from fedjax_core.sites.site.records import usable

    clients = fc.Clients.from_list(
        [{"x": np.ones((3, 1), np.float32), "y": np.array(["ill", "well", "odd"])}]
    )
    task = fc.models.logistic(1, 2)
    for steps in ((OrdinalEncode("y"),), (Standardise("x"), OrdinalEncode("y"))):
        assert not len(usable(clients, task, steps)[1])
    for steps in (
        (OrdinalEncode("y", categories=("well", "ill")),),
        (Standardise("x"), OrdinalEncode("y", categories=("well", "ill"))),
    ):
        # which is known before any site has told anything
        assert usable(clients, task, steps)[1].tolist() == [2]
    whole = clients.with_columns({"x": clients.columns["x"], "y": np.array([2, 1, 2])})
    assert usable(whole, task)[1].tolist() == [0, 2]  # where nothing codes them


def test_no_error_tells_anybody_to_number_text_alone(tmp_path):
    raw = fc.Clients.from_list([{"x": np.ones((2, 1), np.float32), "y": np.array([1, 2])}])
    with pytest.raises(
        ValueError, match=r"All clients must number the classes from 0 alike, by one list"
    ) as caught:
        raw.check_labels("y", 2)
    assert "np.unique" not in str(caught.value)
    with pytest.raises(ValueError, match=r"Standardise needs numbers; column 'y' holds text"):
        fc.preprocess.fit(
            [Standardise("y")], one(np.array(["a", "b"])).with_columns({"y": np.array(["a", "b"])})
        )


def test_text_is_saved_and_opened(tmp_path):
    clients = fc.Clients.from_list([{"ward": np.array(["icu"])}, {"ward": np.array(["oncology"])}])
    clients.save(tmp_path / "data")
    assert fc.Clients.open(tmp_path / "data").columns["ward"].tolist() == ["icu", "oncology"]
    assert "ward: text[]" in repr(clients) and checks.dtype_of(clients.columns["ward"]) == "text"


def test_what_is_made_of_large_mapped_columns_lies_in_files_without_names(tmp_path, monkeypatch):
    from fedjax_core.data import spill

    monkeypatch.setattr(spill, "LEAST_BYTES", 1000)
    x = np.random.default_rng(0).integers(0, 255, (400, 5), dtype=np.uint8)
    fc.Clients.from_list([{"x": x[:300]}, {"x": x[300:]}]).save(tmp_path / "data")
    mapped = fc.Clients.open(tmp_path / "data")
    fitted = fc.preprocess.fit([Standardise("x")], mapped)
    here, there = fitted.apply(mapped.with_columns({"x": x})), fitted.apply(mapped, tmp_path / "site")
    assert spill.map_of(there.columns["x"]) is not None and spill.map_of(here.columns["x"]) is None
    np.testing.assert_array_equal(here.columns["x"], there.columns["x"])
    first, rest = mapped.split(0.7)
    # 600 bytes
    assert spill.map_of(first.columns["x"]) is not None and spill.map_of(rest.columns["x"]) is None
    expected = mapped.with_columns({"x": x}).split(0.7)
    np.testing.assert_array_equal(first.columns["x"], expected[0].columns["x"])
    np.testing.assert_array_equal(rest.columns["x"], expected[1].columns["x"])
    assert list((tmp_path / "site").iterdir()) == []
    monkeypatch.setattr(spill.os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match=r"there is no room for 0\.0 GB of prepared columns in"):
        fitted.apply(mapped)
