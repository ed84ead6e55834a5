"""Formulas make the columns that statsmodels' own parser makes, by the same names and in the same order."""

import numpy as np
import pytest

from fedjax_core.stats import expressions
from fedjax_core.stats.formula import Design, read
from fedjax_core.stats.table import Table

TABLE = Table(
    {"a": np.array(list("pqr") * 4), "b": np.array(list("uv") * 6), "x": np.linspace(1, 2, 12), "z": np.cos(np.arange(12)),
     "c": np.array([1, 2, 3, 4] * 3)}
)  # fmt: skip


def design(text):
    return read(text).design(
        {name: TABLE.kind(name) for name in TABLE.columns},
        {name: sorted(set(TABLE.labels(name).tolist())) for name in "abc"},
    )


@pytest.mark.parametrize(
    "right",
    ["a", "a*b", "a:b", "0+a", "a:x", "x + a:x", "a*x + C(c)", "np.log(x)+I(x**2)+x:z", "C(c)-1", "b*a*x - 1", "1", "I(x>1.5)", "a + a:b",
     "b + C(a, Treatment('q')):x", "z + x + x:z + b"],
)  # fmt: skip
def test_the_matrix_is_that_of_patsy(right):
    patsy = pytest.importorskip("patsy", reason="patsy, with which this compares, comes with statsmodels")
    found = design(f"y ~ {right}")
    wanted = patsy.dmatrix(right, pytest.importorskip("pandas").DataFrame(dict(TABLE.columns)))
    assert list(found.names) == wanted.design_info.column_names
    np.testing.assert_allclose(found.matrix(TABLE), np.asarray(wanted), rtol=1e-14)


def test_what_a_site_computes_is_data_of_a_small_language():
    for bad in (
        ["column"],
        ["exec", "x"],
        ["column", 3],
        "x",
        ["number", float("inf")],
        ["+", ["column", "x"]],
        [],
    ):
        with pytest.raises(ValueError, match="expression"):
            Design(("x",), (bad,))
    deep = ["column", "x"]
    for _ in range(40):
        deep = ["log", deep]
    with pytest.raises(ValueError, match="too deep"):
        Design(("x",), (deep,))
    assert expressions.parse("Q('my age') >= 18") == [">=", ["column", "my age"], ["number", 18.0]]
