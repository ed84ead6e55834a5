"""Scaling and imputing from sums is what scikit-learn does to the pooled examples."""

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import fedjax_core as fc
from fedjax_core.data import preprocess, scaling
from fedjax_core.data.preprocess import Impute, Rescale, Standardise

SIZES = (23, 5, 1, 4)


@pytest.fixture(scope="module")
def raw():
    """Four clients with columns far from 0, of tiny and huge spread, constant, with holes, and one that
    hardly anybody has."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(sum(SIZES), 7)) * [1, 1e-3, 1e6, 1, 0, 1, 1] + [0, 1e6, -1e9, 5, 0.1, 2, 3]
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:, 4] = 0.1
    x[1:, 5] = np.nan
    x[:, 6] = np.nan
    x[0, :4] = 1.0, 1e6, 2.0, np.nan
    return fc.Clients.from_arrays({"x": x}, np.cumsum([0, *SIZES]), allow_nan=True)


def test_moments_are_those_of_the_pooled_examples(raw):
    pooled = raw.columns["x"][:, :6]
    fitted = preprocess.fit([Standardise("x")], raw)
    scaler = StandardScaler().fit(pooled)
    np.testing.assert_allclose(fitted.parameters[0]["mean"][:6], scaler.mean_, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(fitted.parameters[0]["scale"][:6], scaler.scale_, rtol=1e-6)
    expected = np.nan_to_num(scaler.transform(pooled), nan=0.0)
    got = fitted.apply(raw).columns["x"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[:, :6], expected, rtol=1e-6, atol=1e-6)
    assert not got[:, 6].any()  # nobody has a value
    np.testing.assert_array_equal(raw.map(fitted).columns["x"], got)


def test_ranges_and_means_are_those_of_the_pooled_examples(raw):
    pooled = raw.columns["x"][:, :5]
    got = preprocess.fit([Rescale("x")], raw).apply(raw).columns["x"]
    np.testing.assert_allclose(
        got[:, :5], np.nan_to_num(MinMaxScaler().fit_transform(pooled), nan=0.0), rtol=1e-6, atol=1e-6
    )
    assert not got[:, 6].any()
    # but for 1e6 and its thousandths, which float32 would lose
    apart = raw.with_columns({"x": np.delete(raw.columns["x"], 1, axis=1)})
    got = preprocess.fit(Impute("x"), apart).apply(apart).columns["x"]
    np.testing.assert_allclose(
        got[:, :4], SimpleImputer().fit_transform(np.delete(pooled, 1, axis=1)), rtol=1e-6
    )


def test_a_hundred_thousand_columns_in_chunks_are_those_in_one_piece(monkeypatch):
    x = np.random.default_rng(1).normal(1e4, 1.0, (12, 100_000))
    monkeypatch.setattr(scaling, "_CHUNK_BYTES", 8 * 100_000 * 5)  # rows by fives
    sums = Standardise("x").sums(x, 0)
    np.testing.assert_allclose(sums["mean"], x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(sums["m2"], x.var(axis=0) * 12, rtol=1e-9)


def test_sums_over_too_few_examples_are_not_told():
    x = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 7.0]])
    for step in (Standardise("x"), Rescale("x")):
        sums = step.sums(x, 2)
        assert sums["count"].tolist() == [3, 0] and all(value[1] == 0 for value in sums.values())
