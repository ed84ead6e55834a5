"""The negative matrix of the envelope: everything that is not what a site signed is refused, each for its own
reason."""

import hashlib
import json
import math
import pickle
import random
import re
import struct

import numpy as np
import pytest
from msgspec import UNSET, structs

from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import DuplicateKey, NonCanonical, TooDeep, dumps
from fedjax_core.sites.wire.envelope import (
    MAGIC,
    BadHeader,
    Draft,
    NotAnEnvelope,
    TamperedBody,
    Truncated,
    WrongRecipient,
    WrongSchema,
    decode,
    encode,
    header_of,
    seal,
)
from fedjax_core.sites.wire.identity import BadSignature, RevokedKey, UnknownSender, WrongKey
from fedjax_core.sites.wire.tensors import (
    BadTensors,
    Limits,
    Oversize,
    PicklePayload,
    TooManyTensors,
    TrailingBytes,
    UnknownDtype,
    pack,
)
from tests.sites.parties import CHARITE, MAYO, OLD, ROSTER, STRANGER, TENSORS, header, message


def read(raw, **rest):
    return decode(raw, ROSTER, recipient="coordinator", **rest)


def parts(raw):
    """(header, signature, padding, body) of a message."""
    size = struct.unpack("<I", raw[8:12])[0]
    begin = 12 + size + 64
    body = begin + -begin % 64
    return raw[12 : 12 + size], raw[12 + size : begin], raw[begin:body], raw[body:]


def forged(body=None, key=CHARITE, *, drop=(), **changes):
    """A message from charite, signed as it is with whatever in it that `encode` would not write."""
    head, *_, good = parts(message())
    body = good if body is None else body
    found = json.loads(head) | {"size": len(body), "digest": hashlib.sha256(body).hexdigest()} | changes
    return seal(dumps({name: value for name, value in found.items() if name not in drop}), body, key)


def padded_otherwise():
    raw = next(raw for raw in (message(run="r" * n) for n in range(1, 17)) if len(parts(raw)[2]) == 8)
    head, signature, padding, body = parts(raw)
    return raw[:12] + head + signature + padding[:-1] + b"\1" + body


def with_head(head):
    return seal(head, b"", CHARITE)


def test_what_is_sent_arrives_with_its_types():
    fields = {"weight": 303.0, "examples": 303, "loss": 1e-300, "first": True, "note": "Zürich", "none": None}
    raw = message(fields=fields)
    found = read(raw)
    assert repr(dict(sorted(found.header.fields.items()))) == repr(dict(sorted(fields.items())))
    assert structs.replace(found.header, key="", size=0, digest="", fields={}) == header(fields={})
    assert list(found.tensors) == list(read(raw).tensors) and set(found.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert np.array_equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype
    assert (
        read(message({}, kind="metrics")).tensors == {}
        and read(bytearray(raw)).header == read(memoryview(raw)).header
    )


def test_the_same_message_is_the_same_bytes():
    assert message() == message() != message(sequence=18)


def test_arrays_lie_where_they_can_be_used():
    for extra in range(20):
        raw = message(run="r" * (extra + 1))
        assert (len(raw) - len(parts(raw)[3])) % 16 == 0
        assert all(x.flags.aligned for x in read(raw).tensors.values())


@pytest.mark.parametrize(
    ("raw", "error", "said"),
    [
        (lambda: b"", NotAnEnvelope, "do not begin as a message of fedjax_core does"),
        (lambda: b"GET / HTTP/1.1\r\n", NotAnEnvelope, "do not begin as a message"),
        (lambda: pickle.dumps(print), PicklePayload, "a pickle or an archive, which is never opened"),
        (lambda: message().replace(MAGIC, b"fjx-env\x02"), WrongSchema, "another version of the envelope"),
        (lambda: message()[:10], Truncated, "ends within its header"),
        (lambda: message()[:100], Truncated, "ends within its header"),
        (lambda: message()[:-1], Truncated, "message 17 from 'charite' ends 1 bytes early"),
        (lambda: message() + b"\0", TrailingBytes, "message 17 from 'charite' has 1 bytes after its end, which nobody signed"),
        (lambda: message()[:8] + b"\xff\xff\xff\x7f", Oversize, "the header has 2,147,483,647 bytes, and at most 65,536 are read"),
        # who
        (lambda: message(sender="stranger", key=STRANGER), UnknownSender, "'stranger' is not in the roster"),
        (lambda: message(sender="mayo", key=OLD), RevokedKey, r"of 'mayo' is revoked \(laptop lost\)"),
        (lambda: forged(sender="mayo"), WrongKey, "signed as 'mayo' with the key .* which belongs to 'charite'"),
        (lambda: forged(key=STRANGER), BadSignature, "signature of 'charite' does not fit"),
        (lambda: message(recipient="mayo"), WrongRecipient, "message 17 from 'charite' is for 'mayo', not for 'coordinator'"),
        # what was changed on the way
        (lambda: message().replace(b'"round":3', b'"round":4'), BadSignature, "signature of 'charite' does not fit"),
        (lambda: message().replace(b"303.0", b"903.0"), BadSignature, "signature of 'charite' does not fit"),
        (lambda: message()[:-1] + b"\xff", TamperedBody, "tensors of message 17 from 'charite' are not those that it signed"),
        (padded_otherwise, TamperedBody, "not those that it signed"),
        # what its sender should not have written
        (lambda: forged(schema=2), WrongSchema, "the message is of schema 2, and 1 is read here"),
        (lambda: forged(drop=["schema"]), WrongSchema, "the message is of schema None"),
        (lambda: forged(drop=["run"]), BadHeader, "missing required field `run`"),
        (lambda: forged(code="print()"), BadHeader, "contains unknown field `code`"),
        (lambda: forged(round=-1), BadHeader, r"not in order: Expected `int` >= 0 - at `\$.round`"),
        (lambda: forged(round=3.0), BadHeader, r"Expected `int`, got `float` - at `\$.round`"),
        (lambda: forged(round=True), BadHeader, r"Expected `int`, got `bool` - at `\$.round`"),
        (lambda: forged(sequence=2**63), BadHeader, r"Expected `int` <= .* - at `\$.sequence`"),
        (lambda: forged(run="../../etc"), BadHeader, r"run is '\.\./\.\./etc'; it should be a name"),
        (lambda: forged(sender="\x1b[31m"), BadHeader, r"sender is '\\x1b\[31m'; it should be a name"),
        (lambda: forged(config="xyz"), BadHeader, "config is 'xyz'; it should be hexadecimal digits"),
        (lambda: forged(fields={"A b": 1}), BadHeader, "field 'A b' has no proper name"),
        (lambda: forged(fields={"a": "x\ny"}), BadHeader, "field 'a' is no finite number of 64 bits, truth value, or line of text"),
        (lambda: forged(fields={"a": 2**64}), BadHeader, "field 'a' is no finite number"),
        (lambda: forged(fields={f"f{i}": 0 for i in range(300)}), BadHeader, r"Expected `object` of length <= 256 - at `\$.fields`"),
        (lambda: forged(fields={"a": [1]}), TooDeep, "the header is nested more deeply than the 2 levels"),
        (lambda: with_head(b'{"a":' * 5000), TooDeep, "the header is nested"),
        (lambda: with_head(b"[]"), BadHeader, "the header is no table"),
        (lambda: with_head(b'{"a":1,"a":2}'), DuplicateKey, "the header has a key twice"),
        (lambda: with_head(parts(message())[0].replace(b":3,", b": 3,")), NonCanonical, "the header is not in canonical form"),
        (lambda: with_head(parts(message())[0].replace(b"303.0", b"NaN")), NonCanonical, "the header is not in canonical form"),
        (lambda: with_head(b"\xff\xff"), NonCanonical, "the header is not JSON"),
        (lambda: forged(pickle.dumps({"w": 1})), PicklePayload, "a pickle or an archive"),
        (lambda: forged(b"hello"), BadTensors, "not in the safetensors format"),
        (lambda: forged(pack(TENSORS).replace(b'"F32"', b'"F99"')), UnknownDtype, "is 'F99', which does not travel"),
        (lambda: forged(pack(TENSORS) + b"\0"), TrailingBytes, "1 bytes after the last tensor"),
    ],
)  # fmt: skip
@pytest.mark.meets(
    "164.312(c)(1)", by="a digest and a signature over every message, any changed byte of which is refused"
)
def test_refused(raw, error, said):
    with pytest.raises(error, match=said) as refusal:
        read(raw())
    assert refusal.type is error and error.code != Refused.code
    plain = re.sub("[0-9a-f]{32}", "", str(refusal.value))  # without fingerprints, in which any digits may be
    assert "303" not in plain and "0.5" not in plain


@pytest.mark.parametrize(
    ("limits", "error", "said"),
    [
        (
            Limits(message_bytes=100),
            Oversize,
            "the message has .* bytes, and at most 100 are read; raise Limits.message_bytes",
        ),
        (
            Limits(header_bytes=100),
            Oversize,
            "the header has .* bytes, and at most 100 are read; raise Limits.header_bytes",
        ),
        (Limits(tensors=1), TooManyTensors, "there are 2 tensors, and at most 1"),
    ],
)
def test_limits_hold(limits, error, said):
    with pytest.raises(error, match=said):
        read(message(), limits=limits)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sender": "mayo"}, "names 'mayo' as sender, but the key is of 'charite'"),
        ({"fields": {"weight": float("nan")}}, "cannot be sent: field 'weight' is no finite number"),
        (
            {"fields": {"none": None, "weight": math.inf}},
            "cannot be sent: field 'weight' is no finite number",
        ),
        ({"fields": {"weight": np.float32(1)}}, "cannot be sent: field 'weight' is no finite number"),
        ({"fields": {"weight": b"1"}}, "cannot be sent: field 'weight' is no finite number"),
        ({"run": b"abc"}, "cannot be sent: an entry is of a type that does not travel"),
        ({"round": -1}, r"cannot be sent: the header is not in order: .* - at `\$.round`"),
        ({"run": ""}, "cannot be sent: the header is not in order: run is ''"),
    ],
)
def test_what_could_not_be_read_is_not_sent(changes, said):
    with pytest.raises(ValueError, match=said):
        message(**changes)


def mutate(raw, chance):
    """The bytes with a few of them changed, removed, repeated, or replaced by what parsers trip over."""
    raw = bytearray(raw)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(raw)) if raw else 0
        match chance.randrange(7):
            case 0:
                raw[at : at + 1] = bytes([chance.randrange(256)])
            case 1 if raw:
                raw[at] ^= 1 << chance.randrange(8)
            case 2:
                del raw[at : at + chance.randrange(1, 40)]
            case 3:
                raw[at:at] = raw[at : at + chance.randrange(1, 40)]
            case 4:
                raw = raw[:at]
            case 5:
                raw[at:at] = chance.choice(
                    [
                        b"[" * 999,
                        b'{"a":',
                        b'"',
                        b"\\ud800",
                        b"1e999",
                        b"9" * 5000,
                        b"-",
                        b"null",
                        b"\xff",
                        b"[]",
                        b"0,",
                    ]
                )
            case _:
                raw[at : at + 8] = chance.choice(
                    [b"\xff" * 8, bytes(8), struct.pack("<q", -1), struct.pack("<Q", 1 << 62)]
                )
    return bytes(raw)


def test_nothing_but_a_refusal_ever_comes_of_bytes():
    chance, whole = random.Random(0), message()
    head, _, _, body = parts(whole)
    refused = 0
    for trial in range(6000):
        match trial % 3:
            case 0:  # changed on the way
                raw = mutate(whole, chance)
            case 1:  # by whoever signs: a header such as no encoder writes
                raw = seal(mutate(head, chance), body, CHARITE)
            case _:  # and tensors such as no encoder writes
                raw = forged(mutate(body, chance))
        try:
            read(raw)
        except Refused:
            refused += 1
    # what passes has other numbers in its tensors, or other values in its header, duly signed
    assert refused > 5000


def test_the_key_of_a_header_is_filled_in():
    found = read(encode(header(sender="mayo"), TENSORS, MAYO)).header
    assert found.key == MAYO.public.fingerprint and len(found.digest) == 64


def test_the_head_of_the_senders_log_travels_and_need_not():
    head = f"17:{'9f' * 32}"
    without, with_head = message(), message(head=head)
    assert (
        b'"head"' not in bytes(without)
        and decode(without, ROSTER, recipient="coordinator").header.head is UNSET
    )
    assert decode(with_head, ROSTER, recipient="coordinator").header.head == head
    draft = Draft(header(), TENSORS, CHARITE)
    assert bytes(draft.signed(head)) == bytes(with_head) and bytes(draft.signed()) == bytes(without)
    assert draft.size() == len(without) and draft.size(17) == len(with_head)
    for entry in (0, 9, 10, 12345, 10**17):
        assert draft.size(entry) == len(draft.signed(f"{entry}:{'0' * 64}"))


@pytest.mark.parametrize(
    "head",
    ["", "17", "17:" + "9" * 63, "-1:" + "9" * 64, "017:" + "9" * 64, "1:" + "G" * 64, f"17:{'9' * 64}\n", 7],
)
def test_what_is_no_head_does_not_travel_and_is_refused(head):
    with pytest.raises(ValueError, match="cannot be sent"):
        message(head=head)
    good = json.loads(dumps(header_of(message())))
    with pytest.raises(BadHeader):
        decode(
            seal(dumps(good | {"head": head}), bytes(message())[-good["size"] :], CHARITE),
            ROSTER,
            recipient="coordinator",
        )
