"""Trees travel as they are, and bytes that are not exactly the format are refused."""

import json
import struct
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fedjax_core.sites.wire.canonical import DuplicateKey, NonCanonical, TooDeep
from fedjax_core.sites.wire.tensors import (
    ALIGN,
    DTYPES,
    BadTensors,
    Limits,
    Oversize,
    PicklePayload,
    TooManyTensors,
    TrailingBytes,
    UnknownDtype,
    joined,
    pack,
    unpack,
)
from fedjax_core.sites.wire.trees import (
    LeafSpec,
    WrongDtype,
    WrongShape,
    WrongStructure,
    from_tensors,
    leaf_specs,
    to_tensors,
)


class Model(NamedTuple):
    layers: list
    bias: dict


TREE = Model(
    [np.ones((2, 3), np.float32), np.zeros((0, 4), np.int8)], {"a": np.int64(2**62), "a/b": np.array(True)}
)


def raw(index, data=b""):
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="U8", shape=(2,), offsets=(0, 2)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_tree_comes_back_in_the_structure_of_the_reader():
    like = jax.eval_shape(
        lambda: jax.tree.map(
            lambda x: jnp.zeros(np.shape(x), bool if np.asarray(x).dtype == bool else "int8"), TREE
        )
    )
    assert (
        list(leaf_specs(like))
        == list(to_tensors(TREE))
        == [".layers[0]", ".layers[1]", ".bias['a']", ".bias['a/b']"]
    )
    back = from_tensors(unpack(pack(to_tensors(TREE))), TREE)
    assert isinstance(back, Model) and back.bias["a"] == 2**62 and back.bias["a"].dtype == np.int64
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), back, TREE))


def test_one_leaf_is_a_tree_too():
    back = from_tensors(unpack(pack(to_tensors(np.float32(3)))), np.float32(0))
    assert back == 3 and back.dtype == np.float32


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_travels_bit_for_bit(dtype):
    numbers = (
        np.random.default_rng(0)
        .integers(0, 2 if dtype.kind == "b" else 256, (3, 2 * dtype.itemsize), np.uint8)
        .view(dtype)
    )
    back = unpack(pack({"a": numbers, "turned": numbers.T, "big": numbers.astype(dtype.newbyteorder(">"))}))
    assert back["a"].dtype == dtype and back["a"].tobytes() == numbers.tobytes() == back["big"].tobytes()
    assert back["turned"].tobytes() == numbers.T.tobytes() and not back["a"].flags.writeable


def test_the_format_is_that_of_the_library():
    tensors = {"b": np.arange(3, dtype=np.int16), "a": np.ones((2, 2))}
    read = safetensors.numpy.load(pack(tensors))
    assert {name: (x.dtype, x.tolist()) for name, x in read.items()} == {
        name: (x.dtype, x.tolist()) for name, x in tensors.items()
    }
    assert {name: x.tolist() for name, x in unpack(safetensors.numpy.save(tensors)).items()} == {
        n: x.tolist() for n, x in tensors.items()
    }


def test_large_tensors_lie_where_they_can_be_used_as_they_are():
    sizes = {"a": 10, "b": 64, "c": 7, "d": 32, "e": 16}
    tensors = {name: np.full(n, n, np.float32) for name, n in sizes.items()} | {
        "f": np.ones(3),
        "g": np.ones(0),
    }
    body = pack(tensors)
    found, begin = unpack(body), np.frombuffer(body, np.uint8).ctypes.data
    assert all(np.array_equal(found[name], x) for name, x in tensors.items()) and body == pack(
        dict(reversed(tensors.items()))
    )
    assert [(found[name].ctypes.data - begin) % 64 for name in "bde"] == [0, 0, 0] and found[
        "f"
    ].ctypes.data % 8 == begin % 8


def test_the_same_index_before_other_bytes_is_looked_at_anew():
    body = pack({"b": np.array([True, False]), "w": np.arange(3, dtype=np.float32)})
    assert unpack(body)["w"].tolist() == unpack(body)["w"].tolist() == [0, 1, 2]
    other = pack({"b": np.array([False, True]), "w": np.arange(3, 6, dtype=np.float32)})
    assert unpack(other)["w"].tolist() == [3, 4, 5] and unpack(other)["b"].tolist() == [False, True]
    for wrong, error in (
        (body[:-1], BadTensors),
        (body + b"1", TrailingBytes),
        (body[:-2] + b"\2\0", BadTensors),
    ):
        with pytest.raises(error):
            unpack(wrong)
    with pytest.raises(TooManyTensors):
        unpack(body, Limits(tensors=1))


def test_reading_copies_nothing():
    body = pack({"a": np.ones(4, np.float32)})
    assert np.shares_memory(unpack(body)["a"], np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    "tensor",
    [np.array([{}]), np.array(["text"]), np.ones(2, complex), np.ones(1, "datetime64[s]"), np.ones(1, "V3")],
)
def test_what_does_not_travel_is_not_packed(tensor):
    with pytest.raises(
        TypeError, match=r"tensor a is .* which does not travel; convert it to one of bool, int8"
    ):
        pack({"a": tensor})


def test_random_keys_do_not_travel():
    with pytest.raises(TypeError, match=r"\['key'\] is a random key, which never travels"):
        to_tensors({"key": jax.random.key(0)})


def test_names_that_could_not_be_read_are_not_packed():
    with pytest.raises(ValueError, match="not printable or longer than 512"):
        pack({"a" * 513: np.ones(1)})


def test_leaves_with_one_name_are_refused():
    class Same(str):
        def __repr__(self):
            return "same"

    with pytest.raises(ValueError, match="two leaves of the tree have one path"):
        to_tensors({Same("a"): 1, Same("b"): 2})


@pytest.mark.parametrize(
    ("tree", "error", "said"),
    [
        ({"w": np.ones(2)}, WrongStructure, r"missing \"\['b'\]\""),
        ({"w": np.ones(2), "b": np.ones(1), "c": 1}, WrongStructure, r"unexpected \"\['c'\]\""),
        ({"w": np.ones(2), "B": np.ones(1)}, WrongStructure, r"missing .*'b'.*; unexpected .*'B'"),
        ({"w": np.ones(3), "b": np.ones(1)}, WrongShape, r"tensor \['w'\] has shape \[3\] instead of \[2\]"),
        ({"w": np.ones((2, 1)), "b": np.ones(1)}, WrongShape, r"shape \[2, 1\]"),
        (
            {"w": np.ones(2, np.float32), "b": np.ones(1)},
            WrongDtype,
            r"tensor \['w'\] is float32 instead of float64",
        ),
    ],
)
def test_other_trees_are_refused_by_name(tree, error, said):
    with pytest.raises(error, match=said):
        from_tensors(unpack(pack(to_tensors(tree))), {"w": np.zeros(2), "b": np.zeros(1)})


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        (b"", BadTensors, "not in the safetensors format"),
        (b"\xff" * 8, BadTensors, "not in the safetensors format"),
        (raw(b"x" * 9)[:-1], BadTensors, "not in the safetensors format"),
        (b"\x80\x04\x95\x00.", PicklePayload, "a pickle or an archive, which is never opened"),
        (b"PK\x03\x04", PicklePayload, "a pickle or an archive"),
        (raw([]), BadTensors, "Expected `object`, got `array`"),
        (raw(b"{'a'"), NonCanonical, "the index of the tensors is not JSON"),
        (raw(b'{"a":1,"a":1}'), DuplicateKey, "the index of the tensors has a key twice"),
        (raw(b'{"a":' * 100_000), TooDeep, "the index of the tensors is nested"),
        (raw({"a": {"dtype": {"b": {"c": 1}}}}), TooDeep, "the index of the tensors is nested"),
        (raw({"a": 1}), BadTensors, r"Expected `object`, got `int` - at `\$\[...\]`"),
        (raw({"a": {"dtype": "U8"}}), BadTensors, "missing required field `shape`"),
        (raw({"__metadata__": {"x": "y"}}), BadTensors, "contains unknown field `x`"),
        (raw({"a": entry() | {"code": "x"}}, b"ab"), BadTensors, "contains unknown field `code`"),
        (raw({"a\x1b": entry()}, b"ab"), BadTensors, "is not printable"),
        (raw({"a" * 600: entry()}, b"ab"), BadTensors, "longer than 512"),
        (raw({"a": entry("O8")}, b"ab"), UnknownDtype, "tensor 'a' is 'O8', which does not travel"),
        (raw({"a": entry(7)}, b"ab"), BadTensors, r"Expected `str`, got `int` - at `\$\[...\].dtype`"),
        (raw({"a": entry("F4")}, b"ab"), UnknownDtype, "tensor 'a' is 'F4'"),
        (
            raw({"a": entry(shape=[-2])}, b"ab"),
            BadTensors,
            r"Expected `int` >= 0 - at `\$\[...\].shape\[0\]`",
        ),
        (raw({"a": entry(shape=[2.0])}, b"ab"), BadTensors, "Expected `int`, got `float`"),
        (raw({"a": entry(shape=[True])}, b"ab"), BadTensors, "Expected `int`, got `bool`"),
        (raw({"a": entry(shape=[1] * 9)}, b"ab"), BadTensors, "no shape of at most 8 axes"),
        (
            raw({"a": entry(shape=[0, 2**62], offsets=(0, 0))}),
            BadTensors,
            "Expected `int` <= 281474976710656",
        ),
        (raw({"a": entry(shape=[0, 2**40], offsets=(0, 0))}), BadTensors, "no shape of at most 8 axes"),
        (raw({"a": entry(shape=[2**31, 2**31, 2**31])}, b"ab"), Oversize, "would end past"),
        (raw({"a": entry(shape=[3])}, b"ab"), BadTensors, "does not lie where"),
        (raw({"a": entry(shape=[3], offsets=(0, 3))}, b"ab"), BadTensors, "does not lie where"),
        (raw({"a": entry(offsets=(1, 3))}, b"abc"), BadTensors, "does not lie where"),
        (
            raw({"a": entry(offsets=(0, 2)), "b": entry(offsets=(1, 3))}, b"abc"),
            BadTensors,
            "does not lie where",
        ),
        (
            raw({"a": entry(offsets=(0, 2)), "b": entry(offsets=(0, 2))}, b"ab"),
            BadTensors,
            "does not lie where",
        ),
        (raw({"a": entry(offsets=(0, 2, 4))}, b"ab"), BadTensors, "Expected `array` of length 2"),
        (
            raw({"a": entry(offsets=(0, 2)), "b": entry(offsets=(3, 5))}, b"abcde"),
            BadTensors,
            "does not lie where",
        ),
        (raw({"a": entry()}, b"abc"), TrailingBytes, "1 bytes after the last tensor"),
        (raw({"a": entry("BOOL")}, b"\x01\x02"), BadTensors, "bytes that are neither"),
    ],
)
def test_bytes_that_are_not_the_format_are_refused(body, error, said):
    with pytest.raises(error, match=said):
        unpack(body)


@pytest.mark.parametrize(
    ("limits", "error", "said"),
    [
        (
            Limits(message_bytes=100),
            Oversize,
            "the tensors take .* at most 100 are read; raise Limits.message_bytes",
        ),
        (Limits(index_bytes=10), Oversize, "raise Limits.index_bytes"),
        (
            Limits(tensors=1),
            TooManyTensors,
            "there are 2 tensors, and at most 1 are read; raise Limits.tensors",
        ),
        (Limits(axes=0), BadTensors, "no shape of at most 0 axes"),
        (Limits(name_characters=1), BadTensors, "longer than 1 characters"),
    ],
)
def test_limits_hold(limits, error, said):
    with pytest.raises(error, match=said):
        unpack(pack({"w1": np.ones(2), "w2": np.ones(2)}), limits)


def test_kinds_are_those_of_shapes():
    assert leaf_specs({"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "n": 3}) == {
        "['n']": LeafSpec("int64", ()),
        "['w']": LeafSpec("bfloat16", (2, 3)),
    }


def test_long_messages_are_joined_aligned_and_read_only(monkeypatch):
    pieces = [b"head", memoryview(np.arange(100, dtype=np.uint8).data), b""]
    short = joined(pieces)
    monkeypatch.setattr("fedjax_core.sites.wire.tensors._LONG", 8)
    long = joined(pieces)
    assert long == short == b"head" + bytes(range(100)) and isinstance(short, bytes)
    assert np.frombuffer(long, np.uint8).ctypes.data % ALIGN == 0 and long.readonly
