"""Clients: ragged views of flat columns, addresses, splitting, and what is refused."""

import hashlib
from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest

from fedjax_core.data import Clients


def three(ids=None, **rest):
    """Sizes 3, 0, 2; x[row] = [row, -row], y = row."""
    x = np.stack([np.arange(5.0), -np.arange(5.0)], axis=1)
    return Clients.from_arrays({"x": x, "y": np.arange(5)}, offsets=[0, 3, 3, 5], ids=ids, **rest)


def test_one_clients_columns_are_its_rows():
    clients = three()
    assert len(clients) == 3 and clients.examples == 5
    assert clients.sizes.tolist() == [3, 0, 2] and clients.sizes.dtype == np.int64
    assert clients.offsets.tolist() == [0, 3, 3, 5] and clients.offsets.dtype == np.int64
    assert clients[2]["y"].tolist() == clients[-1]["y"].tolist() == [3, 4]
    assert clients[1]["x"].shape == (0, 2)
    assert [c["y"].tolist() for c in clients] == [[0, 1, 2], [], [3, 4]]
    assert clients.nbytes == 5 * 3 * 8


def test_columns_are_views_that_do_not_change():
    x = np.arange(4)
    clients = Clients.from_arrays({"x": x}, offsets=[0, 4])
    assert np.shares_memory(clients[0]["x"], x)
    with pytest.raises(ValueError, match="read-only"):
        clients[0]["x"][0] = 7
    x[0] = 7  # the caller's own array stays writable


def test_list_arrays_and_parts_agree():
    flat = three()
    listed = Clients.from_list([{"x": c["x"], "y": c["y"]} for c in flat])
    shuffled = np.array([4, 2, 0, 3, 1])
    columns = {name: column[np.argsort(shuffled)] for name, column in flat.columns.items()}
    dealt = Clients.from_parts(columns, [shuffled[:3], shuffled[3:3], shuffled[3:]])
    assert flat.fingerprint() == listed.fingerprint() == dealt.fingerprint()


def test_any_pytree_and_dtype():
    entry = ({"image": np.zeros((2, 4, 4), np.uint8)}, [np.ones(2, ml_dtypes.bfloat16)], np.zeros(2, bool))
    clients = Clients.from_list([entry, entry])
    images, (half,), flag = clients[1]
    assert images["image"].dtype == np.uint8 and images["image"].shape == (2, 4, 4)
    assert half.dtype == ml_dtypes.bfloat16 and flag.dtype == bool
    swapped = Clients.from_arrays({"x": np.array([1, 2], ">i4")}, offsets=[0, 2])
    assert swapped[0]["x"].dtype.isnative and swapped[0]["x"].tolist() == [1, 2]


def test_addresses_split_the_id_in_two_words():
    assert three().addresses.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert three().addresses.dtype == np.uint32
    assert three(ids=[7, 2**32 + 5, 2**64 - 1]).addresses.tolist() == [[0, 7], [1, 5], [2**32 - 1, 2**32 - 1]]


def test_addresses_of_names_are_their_digest():
    clients = three(ids=["Zürich", "b", "c"])
    digest = hashlib.blake2b("Zürich".encode(), digest_size=8).hexdigest()
    assert "".join(f"{word:08x}" for word in clients.addresses[0]) == digest
    alone = Clients.from_list([{"x": np.zeros(1)}], ids=["c"])
    assert alone.addresses[0].tolist() == clients.addresses[2].tolist()


def test_select_keeps_ids_and_rows():
    clients = three(ids=["a", "b", "c"])
    chosen = clients.select([-1, 1, 0])
    assert chosen.ids.tolist() == ["c", "b", "a"]
    assert [c["y"].tolist() for c in chosen] == [[3, 4], [], [0, 1, 2]]
    neighbours = clients.select(np.array([1, 2]))
    assert [c["y"].tolist() for c in neighbours] == [[], [3, 4]]
    assert np.shares_memory(neighbours.columns["x"], clients.columns["x"])
    assert three().select([2]).ids.tolist() == [2]


def test_split_divides_each_client_once_whatever_the_order():
    sizes = [10, 0, 3, 101]
    clients = Clients.from_list(
        [{"x": 1000 * i + np.arange(n)} for i, n in enumerate(sizes)], ids=["a", "b", "c", "d"]
    )
    first, rest = clients.split(0.7, seed=3)
    assert first.sizes.tolist() == [7, 0, 2, 71] and rest.sizes.tolist() == [3, 0, 1, 30]
    for whole, one, two in zip(clients, first, rest, strict=True):
        assert sorted([*one["x"], *two["x"]]) == whole["x"].tolist()
        assert (np.diff(one["x"]) > 0).all()
    alone, _ = clients.select([3, 0]).split(0.7, seed=3)
    assert (
        alone[0]["x"].tolist() == first[3]["x"].tolist() and alone[1]["x"].tolist() == first[0]["x"].tolist()
    )
    assert clients.split(0.7, seed=4)[0][3]["x"].tolist() != first[3]["x"].tolist()


def scans(seed, patients, first=0):
    """Three scans a patient, in any order; of one patient in ten some show the disease."""
    rng = np.random.default_rng(seed)
    patient = rng.permutation(np.repeat(np.arange(patients) + first, 3))
    return {
        "patient": patient,
        "y": ((patient % 10 == 0) & (rng.random(len(patient)) < 0.8)).astype(np.int32),
    }


@pytest.mark.parametrize("text", [False, True])
def test_split_by_person_keeps_each_on_one_side(text):
    each = [scans(i, n, 100 * i) for i, n in enumerate((10, 1, 25))]
    if text:
        each = [{**c, "patient": np.array([f"p{n}" for n in c["patient"]])} for c in each]
    clients = Clients.from_list([*each, {name: x[:0] for name, x in each[0].items()}])
    first, rest = clients.split(0.7, seed=2, by="patient")
    assert [len(np.unique(c["patient"])) for c in first] == [7, 1, 18, 0] and [
        len(np.unique(c["patient"])) for c in rest
    ] == [3, 0, 7, 0]
    assert not set(first.columns["patient"].tolist()) & set(rest.columns["patient"].tolist())
    assert first.examples + rest.examples == clients.examples
    alone, _ = clients.select([2, 0]).split(0.7, seed=2, by="patient")
    assert alone[0]["patient"].tolist() == first[2]["patient"].tolist()


def test_split_by_class_has_rare_cases_on_both_sides():
    rare = Clients.from_list([{"y": (np.arange(60) < 2).astype(np.int32)} for _ in range(20)])
    first, rest = rare.split(0.8, stratify="y")
    assert {int(c["y"].sum()) for c in first} == {int(c["y"].sum()) for c in rest} == {1}
    assert set(first.sizes.tolist()) == {1 + 46}
    both = Clients.from_list([scans(i, 30) for i in range(5)])
    first, rest = both.split(0.8, by="patient", stratify="y")
    for one, two in zip(first, rest, strict=True):
        assert (
            not set(one["patient"].tolist()) & set(two["patient"].tolist())
            and one["y"].any()
            and two["y"].any()
        )


def test_split_is_fair_to_every_row():
    clients = Clients.from_arrays({"x": np.tile(np.arange(10), 1000)}, offsets=np.arange(1001) * 10)
    counts = np.bincount(clients.split(0.3)[0].columns["x"])
    assert counts.sum() == 3000
    assert (np.abs(counts - 300) < 5 * np.sqrt(1000 * 0.3 * 0.7)).all()


def test_map_is_each_clients_own():
    clients = Clients.from_list(
        [{"x": np.array([1.0, 3.0])}, {"x": np.array([10.0, 10.0, 40.0])}], ids=[5, 6]
    )
    centred = clients.map(lambda own: {"x": own["x"] - own["x"].mean()})
    assert centred[0]["x"].tolist() == [-1, 1] and centred[1]["x"].tolist() == [-10, -10, 20]
    assert centred.ids.tolist() == [5, 6]
    assert clients.map(lambda own: {"x": own["x"][1:]}).sizes.tolist() == [1, 2]


def test_fingerprint_sees_every_part():
    x, y = np.arange(4.0), np.arange(4)
    base = Clients.from_arrays({"x": x, "y": y}, offsets=[0, 2, 4])
    assert (
        base.fingerprint()
        == Clients.from_arrays({"y": y.copy(), "x": x.copy()}, offsets=[0, 2, 4]).fingerprint()
    )
    changed = [
        Clients.from_arrays({"x": x, "y": y}, offsets=[0, 3, 4]),
        Clients.from_arrays({"x": x, "y": y}, offsets=[0, 2, 4], ids=[1, 0]),
        Clients.from_arrays({"x": x, "z": y}, offsets=[0, 2, 4]),
        Clients.from_arrays({"x": x, "y": y.astype(np.int32)}, offsets=[0, 2, 4]),
        Clients.from_arrays({"x": x[:, None], "y": y}, offsets=[0, 2, 4]),
        Clients.from_arrays({"x": x + np.array([0, 0, 0, 1e-9]), "y": y}, offsets=[0, 2, 4]),
    ]
    assert len({base.fingerprint(), *(c.fingerprint() for c in changed)}) == 7


def test_fingerprint_of_large_data_reads_blocks(monkeypatch):
    from fedjax_core.data import fingerprint as module

    monkeypatch.setattr(module, "WHOLE_BYTES", 4096)
    x = np.arange(100_000, dtype=np.int32)
    base = Clients.from_arrays({"x": x}, offsets=[0, len(x)]).fingerprint()
    for row in (0, len(x) - 1):
        changed = x.copy()
        changed[row] += 1
        assert Clients.from_arrays({"x": changed}, offsets=[0, len(x)]).fingerprint() != base
    leaf_blocks = list(module._blocks(x, 4096 / x.nbytes))
    assert sum(block.nbytes for block in leaf_blocks) <= 4096


def test_repr_says_what_is_there():
    assert (
        repr(three())
        == "Clients(3 clients, 5 examples, sizes 0 to 3 (median 2), x: float64[2], y: int64[], 120 B)"
    )


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Clients.from_list([]), ValueError, "dataset is empty: the list holds no clients"),
        (
            lambda: Clients.from_parts({"x": np.ones(2)}, []),
            ValueError,
            "dataset is empty: parts holds no clients",
        ),
        (
            lambda: Clients.from_arrays({"x": np.ones(0)}, [0]),
            ValueError,
            r"dataset is empty: offsets \[0\] hold no clients",
        ),
        (lambda: Clients.from_list([{"x": np.ones(0)}] * 2), ValueError, "2 clients, but not one example"),
        (lambda: Clients.from_list([{}]), ValueError, "client 0 .*there are no columns"),
        (
            lambda: Clients.from_arrays({"x": np.ones(3), "y": np.ones(2)}, [0, 3]),
            ValueError,
            "'x' has 3 rows, 'y' has 2",
        ),
        (lambda: Clients.from_arrays({"x": np.ones(3)}, [1, 3]), ValueError, "start at 0.* but start at 1"),
        (
            lambda: Clients.from_arrays({"x": np.ones(3)}, [0, 2]),
            ValueError,
            "end at the number of rows, 3, but end at 2",
        ),
        (
            lambda: Clients.from_arrays({"x": np.ones(3)}, [0, 2, 1, 3]),
            ValueError,
            r"offsets\[1\] = 2 and offsets\[2\] = 1, so client 1",
        ),
        (lambda: Clients.from_arrays({"x": np.ones(3)}, [0.0, 3.0]), ValueError, "integer array"),
        (lambda: Clients.from_arrays({"x": np.array([None, 1])}, [0, 2]), TypeError, "'x' has dtype object"),
        (lambda: Clients.from_arrays({"x": [1, 2]}, [0, 2]), ValueError, "'x.0' is a single value"),
        (
            lambda: Clients.from_list([{"x": np.ones(2)}, {"z": np.ones(2)}], ["a", "b"]),
            ValueError,
            r"client 1 \(id 'b'\): has columns z",
        ),
        (
            lambda: Clients.from_list([{"x": np.ones(2)}, {"x": np.ones(2, int)}]),
            ValueError,
            "client 1 .*'x' is int64.*float64",
        ),
        (
            lambda: Clients.from_list([{"x": np.ones((2, 3))}, {"x": np.ones((2, 4))}]),
            ValueError,
            r"client 1 .*\[2, 4\].*\[2, 3\]",
        ),
        (
            lambda: Clients.from_list([{"x": np.ones(2), "y": np.ones(3)}]),
            ValueError,
            "client 0 .*'x' has 2 rows, 'y' has 3",
        ),
        (lambda: Clients.from_parts({"x": np.ones(2)}, [[0], [2]]), ValueError, "part 1 names row 2"),
        (
            lambda: Clients.from_parts({"x": np.ones(2)}, [np.array([True, False])]),
            TypeError,
            "np.flatnonzero",
        ),
        (lambda: three(ids=["a", "b"]), ValueError, "2 ids for 3 clients"),
        (
            lambda: three(ids=["a", "b", "a"]),
            ValueError,
            "id 'a' is given to two clients, at positions 0 and 2",
        ),
        (lambda: three(ids=[4, 4, 5]), ValueError, "id 4 is given to two clients"),
        (lambda: three(ids=[4, -1, 5]), ValueError, "id -1 does not fit"),
        (lambda: three(ids=np.array([4, -1, 5])), ValueError, "id -1 is negative"),
        (lambda: three(ids=[4, 2**64, 5]), ValueError, "does not fit"),
        (lambda: three(ids=["a", 1, 2]), TypeError, "id 'a' is a str; ids are all integers or all strings"),
        (lambda: three(ids=[1.5, 1, 2]), TypeError, "id 1.5 is a float"),
        (lambda: three()[3], IndexError, "no client 3: there are 3, at positions 0 to 2"),
        (lambda: three()[-4], IndexError, "no client -4"),
        (lambda: three()["x"], TypeError, "taken by its position"),
        (lambda: three().select([0, 3]), IndexError, "no client 3"),
        (lambda: three().select([]), ValueError, "no positions"),
        (lambda: three().select([True, False, True]), TypeError, "np.flatnonzero"),
        (lambda: three().select([0, 0]), ValueError, "id 0 is given to two clients"),
        (lambda: three().split(1.0), ValueError, "between 0 and 1, got 1.0"),
        (lambda: three().split(0.1), ValueError, "without examples: the largest client has 3"),
        (lambda: three().split(0.5, by="who"), ValueError, "by='who' names no column; the columns are x, y"),
        (
            lambda: three().split(0.5, by="x"),
            ValueError,
            r"by='x' must be a column of whole numbers, .* got float64\[2\]",
        ),
        (
            lambda: three(["a", "b", "c"]).split(0.5, stratify="y"),
            ValueError,
            r"class 0 of column 'y' has one .* at client 0 \(id 'a'\), ",
        ),
        (
            lambda: three().split(0.5, seed=-1),
            ValueError,
            "seed must be a whole number of at least 0, got -1",
        ),
    ],
)
def test_refuses(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_is_found_where_it_lies(value):
    x = np.zeros((5, 2), np.float32)
    x[3, 1] = value  # the first row after a client without any
    with pytest.raises(ValueError, match=rf"'x' holds {value} at client 2 \(id 'c'\), its row 0"):
        Clients.from_arrays({"x": x}, offsets=[0, 3, 3, 5], ids=["a", "b", "c"])
    assert Clients.from_arrays({"x": x}, offsets=[0, 5], allow_nan=True).examples == 5


def test_labels_are_found_where_they_lie():
    clients = three(ids=["a", "b", "c"])
    clients.check_labels("y", classes=5)
    with pytest.raises(
        ValueError, match=r"the label in column 'y' at client 2 \(id 'c'\), its row 1, is not from 0 to 3"
    ):
        clients.check_labels("y", classes=4)
    negative = Clients.from_arrays({"y": np.array([[0, 1], [1, -1]])}, offsets=[0, 2])
    with pytest.raises(ValueError, match=r"its row 1, is not from 0"):
        negative.check_labels("y", classes=2)
    with pytest.raises(ValueError, match=r"column \'x\' at client 0 .* is not a whole number from 0 to 1"):
        clients.check_labels("x", classes=2)
    floats = Clients.from_arrays({"y": np.array([0.0, 1.0, 1.0, np.nan])}, offsets=[0, 4], allow_nan=True)
    floats.take(np.arange(3)).check_labels("y", classes=2)
    with pytest.raises(ValueError, match="its row 3, is not a whole number"):
        floats.check_labels("y", classes=2)
    with pytest.raises(ValueError, match=r"no column 'z'.*the columns are x, y"):
        clients.check_labels("z", classes=2)


def test_saved_and_opened_is_the_same(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "x": {
            "image": rng.integers(0, 255, (6, 4, 4)).astype(np.uint8),
            "age": rng.normal(size=6).astype(np.float32),
        },
        "y": (np.arange(6), [rng.normal(size=(6, 2))[:, ::-1]]),
        "half": np.arange(6).astype(ml_dtypes.bfloat16),
    }
    clients = Clients.from_arrays(columns, offsets=[0, 2, 2, 6], ids=["a", "b", "Zürich"])
    clients.save(tmp_path / "new" / "data")
    opened = Clients.open(tmp_path / "new" / "data", check=True)
    assert opened.fingerprint() == clients.fingerprint() and opened.ids.tolist() == ["a", "b", "Zürich"]
    assert isinstance(opened[2]["x"]["image"].base.base, np.memmap)
    assert (
        opened[2]["x"]["image"].dtype == np.uint8
        and (opened[2]["x"]["image"] == columns["x"]["image"][2:]).all()
    )
    assert type(opened.columns["y"]) is tuple and type(opened.columns["y"][1]) is list
    assert (opened[0]["y"][1][0] == columns["y"][1][0][:2]).all()
    assert opened[2]["half"].dtype == ml_dtypes.bfloat16
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data"]


def test_opened_data_is_checked_on_request(tmp_path):
    Clients.from_arrays({"x": np.array([0, np.nan])}, offsets=[0, 2], allow_nan=True).save(tmp_path / "data")
    assert Clients.open(tmp_path / "data").examples == 2
    with pytest.raises(ValueError, match="'x' holds nan"):
        Clients.open(tmp_path / "data", check=True)


def test_save_refuses_and_leaves_nothing(tmp_path, monkeypatch):
    three().save(tmp_path / "data")
    with pytest.raises(FileExistsError, match="exists already"):
        three().save(tmp_path / "data")
    pair = namedtuple("pair", "x")(np.ones(2))
    with pytest.raises(TypeError, match="columns is a pair; only dicts, lists and tuples"):
        Clients.from_list([pair]).save(tmp_path / "other")
    with pytest.raises(TypeError, match="the key 3; only string keys"):
        Clients.from_list([{3: np.ones(2)}]).save(tmp_path / "other")

    def disk_full(*args, **rest):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", disk_full)
    with pytest.raises(OSError, match="disk full"):
        three().save(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_open_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no clients\.json"):
        Clients.open(tmp_path / "nothing")
    three().save(tmp_path / "data")
    column = tmp_path / "data" / "column_0.npy"
    column.write_bytes(column.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"column_0\.npy is missing or damaged"):
        Clients.open(tmp_path / "data")
