"""The field's data sets, read of tiny files in the form of the published ones."""

import gzip
import hashlib
import importlib
import io
import json
import lzma
import sqlite3
import struct
import tarfile

import numpy as np
import pytest

from fedjax_core.data import datasets
from fedjax_core.data.datasets import base, pooled, text, tff

leaf, tiny_shakespeare = (
    importlib.import_module(f"{datasets.__name__}.{name}") for name in ("leaf", "tiny_shakespeare")
)
DRAW = np.random.default_rng(0)


@pytest.fixture
def put(monkeypatch, tmp_path):
    """A function that puts a file where data sets are looked for, and has its loader expect it."""
    monkeypatch.setenv(base.DATA, str(tmp_path / "data"))
    monkeypatch.setenv("FEDJAX_CORE_CACHE", str(tmp_path / "cache"))

    def put(folder, module, name, content):
        known = getattr(module, name)
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / folder / known.name).write_bytes(content)
        monkeypatch.setattr(
            module, name, known._replace(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        )

    return put


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def record(**features):
    """A tf.train.Example by the rules of protocol buffers: float32, whole numbers, or text."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = field(1, field(1, value))
        elif np.asarray(value).dtype == np.float32:
            feature = field(2, field(1, np.asarray(value).tobytes()))
        else:
            feature = field(3, field(1, b"".join(varint(int(v)) for v in np.ravel(value))))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def database(tmp_path, rows):
    """The compressed database of (split, client, record)."""
    path = tmp_path / "made.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "create table examples (split_name text not null, client_id text not null, serialized_example_proto blob not null)"
        )
        connection.executemany("insert into examples values (?, ?, ?)", rows)
    connection.close()
    return lzma.compress(path.read_bytes(), preset=0)


def test_a_record_is_read_as_it_was_written():
    whole = np.array([0, 1, 127, 128, 300, 16384, 2**40])
    found = tff.parse(record(label=whole, pixels=np.array([0.5, -1.0], np.float32), snippets=b"To be"))
    np.testing.assert_array_equal(found["label"], whole)
    np.testing.assert_array_equal(found["pixels"], np.float32([0.5, -1.0]))
    assert found["snippets"] == [b"To be"]
    one_by_one = field(1, field(1, field(1, b"label") + field(2, field(3, varint(1 << 3) + b"\x05"))))
    with pytest.raises(base.DataError, match="in the middle of a field"):
        tff.parse(record(label=whole)[:-3])
    assert tff.parse(one_by_one)["label"].tolist() == [5]


def test_emnist_has_writers_and_dark_ink_on_nothing(put, tmp_path):
    pixels = (DRAW.integers(0, 256, (5, 784)) / 255).astype(np.float32)
    rows = [
        (split, client, record(pixels=pixels[i], label=[10 * i]))
        for i, (split, client) in enumerate(
            [("train", "b"), ("train", "a"), ("train", "b"), ("test", "a"), ("digits_only_train", "a")]
        )
    ]
    put("emnist", tff, "EMNIST", database(tmp_path, rows))
    found = datasets.emnist()
    assert (
        found.train.sizes.tolist() == [1, 2]
        and found.test.sizes.tolist() == [1]
        and list(found.train.ids) == ["a", "b"]
    )
    np.testing.assert_array_equal(found.train[1]["x"].reshape(2, 784), np.rint(255 - 255 * pixels[[0, 2]]))
    assert found.train[1]["y"].tolist() == [0, 20]
    with pytest.raises(base.DataError, match="no examples of the split 'digits_only_test'"):
        datasets.emnist(only_digits=True)


def test_cifar100_by_pachinko(put, tmp_path):
    image = DRAW.integers(0, 256, (32, 32, 3))
    rows = [(split, "7", record(image=image, label=[99], coarse_label=[1])) for split in ("train", "test")]
    put("cifar100", tff, "CIFAR100", database(tmp_path, rows))
    found = datasets.cifar100_pachinko().train[0]
    np.testing.assert_array_equal(found["x"][0], image)
    assert found["y"].tolist() == [99]


def test_shakespeare_is_the_lines_of_a_role_one_character_ahead(put, tmp_path):
    rows = [
        (split, "THE_ROLE", record(snippets=line))
        for split in ("train", "test")
        for line in (b"To be", b"Or not\xc3\xa9")
    ]
    put("shakespeare", tff, "SHAKESPEARE", database(tmp_path, rows))
    found = datasets.shakespeare(length=6).train[0]
    assert "".join(map(text.text, found["x"])) == "<To be><Or not~~"
    assert "".join(map(text.text, found["y"])) == "To be><Or not~~>"
    assert found["x"].shape == (3, 6) and found["x"].max() < text.VOCABULARY == 90


def test_leaf_files(tmp_path):
    for split, users in (("train", ["f1", "f0"]), ("test", ["f0"])):
        (tmp_path / "femnist" / split).mkdir(parents=True)
        data = {user: {"x": [[1.0] * 783 + [0.2]] * 2, "y": [3, 61]} for user in users}
        content = {"users": users, "num_samples": [2] * len(users), "user_data": data}
        (tmp_path / "femnist" / split / "all_data.json").write_text(json.dumps(content))
    found = datasets.leaf(tmp_path / "femnist", "femnist")
    assert list(found.train.ids) == ["f1", "f0"] and found.train.sizes.tolist() == [2, 2]
    assert found.test[0]["x"].reshape(2, 784)[:, -2:].tolist() == [[0, 204]] * 2 and found.test[0][
        "y"
    ].tolist() == [3, 61]
    play = leaf._shakespeare({"x": ["to b", "o be"], "y": ["e", "!"]})
    assert [text.text(x) for x in play["x"]] == ["to b", "o be"] and [text.text(y) for y in play["y"]] == [
        "o be",
        " be!",
    ]
    file = tmp_path / "femnist" / "test" / "all_data.json"
    file.write_text(file.read_text().replace("[2]", "[3]"))
    with pytest.raises(base.DataError, match=r"says that user 'f0' has 3 examples: there are 2 of x, 2 of y"):
        datasets.leaf(tmp_path / "femnist", "femnist")
    with pytest.raises(base.DataError, match=r"no \.json files in it: LEAF's preprocess.sh"):
        datasets.leaf(tmp_path, "shakespeare")
    with pytest.raises(ValueError, match="femnist, shakespeare, got 'sent140'"):
        datasets.leaf(tmp_path, "sent140")


def test_fashion_mnist(put, monkeypatch):
    files = []
    for i, (known, n) in enumerate(zip(pooled.FASHION, (4, 4, 2, 2), strict=True)):
        shape = (n, 28, 28) if i % 2 == 0 else (n,)
        values = DRAW.integers(0, 10, shape).astype(np.uint8)
        content = gzip.compress(
            b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()
        )
        monkeypatch.setattr(pooled, "ONE", known, raising=False)
        put("fashion_mnist", pooled, "ONE", content)
        files.append((pooled.ONE, values))
    monkeypatch.setattr(pooled, "FASHION", [file for file, _ in files])
    found = datasets.fashion_mnist()
    np.testing.assert_array_equal(found.train[0]["x"][..., 0], files[0][1])
    np.testing.assert_array_equal(found.test[0]["y"], files[3][1])
    assert found.train[0]["x"].dtype == np.uint8 and len(found.train) == len(found.test) == 1


@pytest.mark.parametrize(("name", "labels"), [("CIFAR10", 1), ("CIFAR100", 2)])
def test_cifar(put, name, labels):
    parts = ["data_batch_1", "data_batch_2", "test_batch"] if labels == 1 else ["train", "test"]
    made, packed = {}, io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for part in parts:
            made[part] = DRAW.integers(0, 256, (2, labels + 3072)).astype(np.uint8)
            info = tarfile.TarInfo(f"cifar-batches-bin/{part}.bin")
            info.size = made[part].size
            archive.addfile(info, io.BytesIO(made[part].tobytes()))
    put(name.lower(), pooled, name, packed.getvalue())
    found = getattr(datasets, name.lower())()
    rows = np.concatenate([made[part] for part in parts[:-1]])
    assert found.train[0]["y"].tolist() == rows[:, labels - 1].tolist()
    x = found.train[0]["x"]
    assert x.shape == (len(rows), 32, 32, 3) and x[1, 3, 5, 2] == rows[1, labels + 2 * 1024 + 3 * 32 + 5]
    assert found.test.sizes.tolist() == [2]


def test_another_file_than_the_published_one_is_refused(put, monkeypatch, tmp_path):
    put("shakespeare", tff, "SHAKESPEARE", b"one")
    monkeypatch.setattr(tff, "SHAKESPEARE", tff.SHAKESPEARE._replace(sha256="0" * 64))
    with pytest.raises(base.DataError, match=f"is not the file it should be.*expected {'0' * 64}"):
        datasets.shakespeare()


def test_tiny_shakespeare_has_the_roles_that_speak_enough(put):
    speeches = [f"A:\n{'a' * 30}", "B:\nno", f"A:\n{'b' * 30}", f"A:\n{'c' * 9}"]
    put("tiny_shakespeare", tiny_shakespeare, "INPUT", "\n\n".join(speeches).encode())
    found = datasets.tiny_shakespeare(length=10, least=50, train=0.7)
    assert list(found.train.ids) == ["A"]
    assert (
        text.text(found.train[0]["x"].ravel()) == f"<{'a' * 30}><{'b' * 30}"
        and text.text(found.test[0]["y"].ravel()) == "c" * 9 + ">"
    )
    with pytest.raises(ValueError, match=r"no role has 1,000 characters.*the largest has 69"):
        datasets.tiny_shakespeare(least=1000)
