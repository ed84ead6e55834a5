"""Encrypted checkpoints: they come back to the last bit with their key, and not at all without it or with one
byte changed."""

import base64
import io
import json
import logging
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import fedjax_core as fc
from fedjax_core.run import encryption, load_best
from fedjax_core.run.checkpoint import CheckpointError, Checkpoints, read
from fedjax_core.run.encryption import Corrupt, Decryptor, Encryptor, UnusableKey, load_key
from tests.run import small

KEY, OTHER = bytes(range(32)), bytes(32)
TEXT = KEY.hex() + "\n"


def sealed(*parts, key=KEY):
    file = io.BytesIO()
    with Encryptor(file, key) as writer:
        for part in parts:
            writer.write(part)
    return file.getvalue()


def unsealed(raw, size, key=KEY):
    reader = Decryptor(io.BytesIO(raw), key)
    found = reader.read(size)
    reader.end()
    return found


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, 1000])
def test_any_size_in_any_pieces(monkeypatch, size):
    monkeypatch.setattr(encryption, "CHUNK", 64)
    plain = np.random.default_rng(size).bytes(size)
    for step in (1, 50, 64, 1000):
        raw = sealed(*(plain[i : i + step] for i in range(0, size, step)))
        assert unsealed(raw, size) == plain
        chunks = max(1, -(-size // 64))
        assert len(raw) == encryption._HEAD + size + 16 * chunks


def test_the_format_is_what_its_docstring_says(monkeypatch):
    monkeypatch.setattr(encryption, "CHUNK", 4)
    raw = sealed(b"abcdefg")
    magic, rest = raw[:21], raw[21:]
    salt, name, chunks = rest[:32], rest[32:48], rest[56:]
    derived = HKDF(SHA256(), 48, salt, b"fedjax_core sealed 1").derive(KEY)
    cipher = AESGCM(derived[:32])
    assert (magic, name) == (b"fedjax_core sealed 1\n", derived[32:])
    assert cipher.decrypt(bytes(12), chunks[:20], None) == b"abcd"
    assert cipher.decrypt(bytes(10) + b"\x01\x01", chunks[20:], None) == b"efg"
    assert raw[21:53] != sealed(b"abcdefg")[21:53]  # another salt, so another key and other nonces' use


@pytest.mark.meets("164.312(c)(1)", by="a tag over every piece of a checkpoint")
def test_every_flipped_bit_cut_exchange_and_addition_is_found(monkeypatch):
    monkeypatch.setattr(encryption, "CHUNK", 8)
    plain = bytes(range(20))
    raw = sealed(plain)
    head, chunks = raw[: encryption._HEAD], [raw[encryption._HEAD :][i : i + 24] for i in range(0, 68, 24)]
    assert len(chunks) == 3 and head + b"".join(chunks) == raw
    changed = [raw[:i] + bytes([raw[i] ^ 1 << i % 8]) + raw[i + 1 :] for i in range(len(raw))]
    changed += [raw[:n] for n in range(len(raw))]
    changed += [
        head + chunks[1] + chunks[0] + chunks[2],
        head + chunks[0] + chunks[2],
        head + chunks[0] + chunks[0] + chunks[2],
    ]
    changed += [
        raw + b"\x00",
        raw + chunks[2],
        head + b"".join(chunks) * 2,
        sealed(plain)[: encryption._HEAD] + raw[encryption._HEAD :],
    ]
    for wrong in changed:
        with pytest.raises(Corrupt):
            unsealed(wrong, len(plain))
    with pytest.raises(Corrupt, match="less than it should"):
        unsealed(raw, 21)
    with pytest.raises(Corrupt, match="more than it should"):
        unsealed(raw, 19)
    with pytest.raises(UnusableKey, match="another key"):
        unsealed(raw, 20, OTHER)


def test_what_ends_in_an_error_is_not_a_whole_file():
    file = io.BytesIO()
    with pytest.raises(ZeroDivisionError), Encryptor(file, KEY) as writer:
        writer.write(b"half")
        raise ZeroDivisionError
    with pytest.raises(Corrupt):
        unsealed(file.getvalue(), 4)


def key_file(folder, text=TEXT, mode=0o600):
    path = folder / "run.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_are_read_where_they_are_safe(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_KEY", KEY.hex())
    assert load_key(key_file(tmp_path), tmp_path / "run") == load_key("env:STUDY_KEY", tmp_path) == KEY
    for mode in (0o640, 0o604, 0o660):
        with pytest.raises(
            UnusableKey, match=f"has mode {mode:04o} and owner .* others may have read the key"
        ):
            load_key(key_file(tmp_path, mode=mode), tmp_path / "run")
    for text in ("", "00" * 31, "00" * 33, "no key", KEY.hex()[:-1]):
        with pytest.raises(UnusableKey, match="64 hexadecimal digits"):
            load_key(key_file(tmp_path, text), tmp_path / "run")
    with pytest.raises(UnusableKey, match="is in the folder of the run"):
        load_key(key_file(tmp_path), tmp_path)
    with pytest.raises(UnusableKey, match="the environment variable NOWHERE is not set"):
        load_key("env:NOWHERE", tmp_path)
    with pytest.raises(UnusableKey, match="openssl rand -hex 32"):
        load_key(tmp_path / "none.key", tmp_path / "run")


def state(value):
    return {
        "w": jnp.full((2, 3), value, jnp.bfloat16),
        "none": jnp.zeros((0, 4)),
        "key": jax.random.key(value),
        "four": jnp.ones(3, "int4"),
    }


def write(run_dir, *rounds, key=KEY):
    with Checkpoints(run_dir, key=key) as checkpoints:
        for round in rounds:
            checkpoints.save(round, state(round), {"note": round, "best": rounds[0]})


def change(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(bytes(raw))


DAMAGE = {
    "head": lambda file: change(file, 30),
    "first byte": lambda file: change(file, encryption._HEAD),
    "last byte": lambda file: change(file, -1),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "missing": lambda file: file.unlink(),
    "an older one in its place": lambda file: file.write_bytes(
        (file.parents[1] / "00000001" / "sealed").read_bytes()
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_falls_back_as_a_plain_one_does(tmp_path, kind, caplog):
    write(tmp_path, 1, 2, 3)
    DAMAGE[kind](tmp_path / "checkpoints" / "00000003" / "sealed")
    with Checkpoints(tmp_path, key=KEY) as checkpoints, caplog.at_level(logging.ERROR):
        saved = checkpoints.newest()
    assert saved.round == saved.about["note"] == 2 and small.bits(saved.place(state(0))) == small.bits(
        state(2)
    )
    assert re.search(
        r"checkpoint of round 3 is damaged \(sealed: .*\), set aside as damaged-00000003; going on from round 2",
        caplog.text,
    )
    assert read((tmp_path / "best").resolve(), KEY).round == 1


@pytest.mark.parametrize(
    ("written", "asked", "said"),
    [
        (
            KEY,
            OTHER,
            r"cannot be opened: it was encrypted with another key\. Give encrypt= the key that it was written with",
        ),
        (KEY, None, r"is encrypted: give encrypt= the key"),
        (None, KEY, r"is not encrypted, though a key was given"),
    ],
    ids=["another", "none", "plain"],
)
@pytest.mark.meets("164.312(a)(2)(iv)", by="a wrong key is refused")
def test_a_wrong_key_is_refused_and_not_taken_for_damage(tmp_path, written, asked, said):
    write(tmp_path, 1, 2, key=written)
    for _ in range(2):
        with Checkpoints(tmp_path, key=asked) as checkpoints, pytest.raises(CheckpointError, match=said):
            checkpoints.newest()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000001", "00000002"]


@pytest.mark.meets("164.312(a)(2)(iv)", by="checkpoints by AES-GCM, `fc.fit(..., encrypt=...)`")
def test_a_run_resumes_bit_for_bit_and_leaves_no_plain_byte(tmp_path, monkeypatch):
    """Whatever is opened on the way counts too, also where it is removed again."""
    opened, real = [], io.open

    def spy(file, *arguments, **options):
        opened.append(os.fspath(file) if isinstance(file, (str, os.PathLike)) else "")
        return real(file, *arguments, **options)

    rng = np.random.default_rng(7)
    start = small.averaging().init(jax.random.key(0)).params
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), start)
    options = {
        "cohorts": small.cohorts(),
        "checkpoint_every": 2,
        "evaluate_every": 3,
        "progress": False,
        "params": params,
    }
    whole = fc.fit(small.averaging(), 6, run_dir=tmp_path / "whole", **options)
    monkeypatch.setattr(ocp.Checkpointer, "save", None)  # Orbax writes by itself, which nobody sees
    monkeypatch.setattr("builtins.open", spy)
    monkeypatch.setattr("io.open", spy)
    secret = {"run_dir": tmp_path / "parts", "encrypt": key_file(tmp_path), **options}
    fc.fit(small.averaging(), 4, **secret)
    parts = fc.fit(small.averaging(), 6, **secret)
    assert small.bits(parts.state) == small.bits(whole.state) and parts.records == whole.records
    best = load_best(tmp_path / "parts", small.averaging(), encrypt=key_file(tmp_path))
    assert small.bits(best) == small.bits(load_best(tmp_path / "whole", small.averaging()))

    files = [path for path in (tmp_path / "parts" / "checkpoints").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"sealed"} and any("writing-00000006" in name for name in opened)
    assert {os.path.basename(name) for name in opened if "parts/checkpoints" in name} == {"sealed"}
    for tree in (params, parts.state.params):
        for x in map(np.asarray, jax.tree.leaves(tree)):
            for raw in filter(any, (x.tobytes()[:8], x.tobytes()[-8:])):
                for spelled in (
                    raw,
                    raw.hex().encode(),
                    base64.b64encode(raw)[:8],
                    json.dumps(x.ravel().tolist()[:1])[1:-1].encode(),
                ):
                    assert not any(spelled in path.read_bytes() for path in files)
    for path in files:
        assert b"params" not in path.read_bytes() and b"config" not in path.read_bytes()


def test_the_key_must_be_there_before_anything_is_done(tmp_path):
    options = {"cohorts": small.cohorts(), "progress": False}
    with pytest.raises(UnusableKey, match="cannot be read"):
        fc.fit(small.averaging(), 1, run_dir=tmp_path / "run", encrypt=tmp_path / "none.key", **options)
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(ValueError, match="without a run_dir there are none"):
        fc.fit(small.averaging(), 1, encrypt="env:X", **options)
