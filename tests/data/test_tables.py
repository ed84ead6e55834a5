"""`Clients.from_table`: text has one coding for all clients, missing values stay missing, rows go to the
client of their value."""

import gzip

import numpy as np
import pytest

from fedjax_core.data import Clients

CSV = "ward,age,sex,stay\nicu,61,F,3\near,NA,M ,2.5\nicu,40,,1\n"


@pytest.fixture(params=["csv", "csv.gz", "parquet", "mapping"])
def table(request, tmp_path):
    path = tmp_path / f"table.{request.param}"
    columns = {
        "ward": ["icu", "ear", "icu"],
        "age": [61, None, 40],
        "sex": ["F", "M ", None],
        "stay": [3.0, 2.5, 1.0],
    }
    if request.param == "csv":
        path.write_text(CSV)
    elif request.param == "csv.gz":
        path.write_bytes(gzip.compress(CSV.encode()))
    elif request.param == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads Parquet, and is not installed")
        parquet.write_table(pytest.importorskip("pyarrow").table(columns), path)
    return columns if request.param == "mapping" else path


def test_a_table_is_the_same_clients_from_every_source(table, tmp_path):
    clients = Clients.from_table(table, by="ward")
    assert clients.ids.tolist() == ["ear", "icu"] and clients.sizes.tolist() == [1, 2]
    assert clients.categories == {"ward": ("ear", "icu"), "sex": ("F", "M")}
    np.testing.assert_array_equal(clients.columns["age"], [np.nan, 61, 40])
    assert clients.columns["sex"].tolist() == [1, 0, -1] and clients[1]["stay"].tolist() == [3.0, 1.0]
    clients.save(tmp_path / "saved")
    again = Clients.open(tmp_path / "saved")
    assert (
        again.categories == clients.categories == clients.select([1, 0]).categories
        and again.fingerprint() == clients.fingerprint()
    )


def test_whole_numbers_are_ids_and_stay_whole():
    clients = Clients.from_table({"site": [3, 1, 3], "y": np.array([1, 0, 1])}, by="site")
    assert (
        clients.ids.tolist() == [1, 3]
        and clients.columns["y"].dtype == np.int64
        and clients.columns["y"].tolist() == [0, 1, 1]
    )
    assert Clients.from_table({"ok": [True, False], "site": [1.0, 2.0]}, by="site").categories == {
        "ok": ("False", "True")
    }


def test_masked_values_are_missing():
    clients = Clients.from_table({"x": np.ma.masked_values([1.0, -9.0], -9.0), "site": ["a", "a"]}, by="site")
    np.testing.assert_array_equal(clients.columns["x"], [1, np.nan])


@pytest.mark.parametrize(
    ("text", "by", "said"),
    [
        ("a,b\n1,2\n3\n", "a", "row 1 has 1 fields"),
        ("a,a\n1,2\n", "a", "all different"),
        ("a,b\n1,2\n", "c", "names no column of the table"),
        ("a,b\n,2\n1,2\n", "a", "is missing in 1 of 2 rows, first in row 0"),
    ],
)
def test_a_damaged_table_is_refused_with_its_place(tmp_path, text, by, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        Clients.from_table(tmp_path / "t.csv", by=by)


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="not a table that is read here"):
        Clients.from_table("study.xlsx", by="a")
    with pytest.raises(ValueError, match="one length"):
        Clients.from_table({"a": [1, 2], "b": [1]}, by="a")
