"""A value has one spelling, and every other is refused for its own reason."""

import pytest

from fedjax_core.sites.refusal import Refused, check_name, shown
from fedjax_core.sites.wire.canonical import DuplicateKey, NonCanonical, TooDeep, dumps, is_scalar, loads


@pytest.mark.parametrize(
    "value", [{}, {"a": [1.5, None, True, "ü \x00"], "b": 1}, 0, -0.0, 5e-324, 1.7976931348623157e308, 2**62]
)
def test_what_is_written_is_read_with_its_types(value):
    back = loads(dumps(value))
    assert back == value and repr(back) == repr(value)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1}',
        b'{"b":1,"a":2}',
        b'"\\u00fc"',
        b"1.50",
        b"1e0",
        b"1E400",
        b"NaN",
        b"-Infinity",
        b'"\\u0041"',
        b" 1",
        b"1\n",
    ],
)
def test_other_spellings_are_refused(raw):
    with pytest.raises(NonCanonical, match="the text is not in canonical form"):
        loads(raw)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"{'a':1}", b"1" * 5000, b'{"a":1}x'])
def test_what_is_no_json_is_refused(raw):
    with pytest.raises(NonCanonical, match="the head is not JSON"):
        loads(raw, "the head")


def test_a_key_twice_is_refused():
    with pytest.raises(DuplicateKey, match="has a key twice"):
        loads(b'{"a":1,"a":1}')


@pytest.mark.parametrize(
    "raw", [b"[" * 4 + b"]" * 4, b'{"a":' * 50 + b"1" + b"}" * 50, b"[" * 200_000, b'{"a":' * 200_000]
)
def test_deep_nesting_is_refused(raw):
    with pytest.raises(TooDeep, match="nested more deeply than the 3 levels"):
        loads(raw)


def test_numbers_that_json_does_not_have_are_not_written():
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps({"a": float("nan")})


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "../a", "a.b", "ü", "a" * 65, "a\n"])
def test_names_that_would_do_harm_are_refused(name):
    with pytest.raises(ValueError, match="is not a name: use 1 to 64 letters"):
        check_name(name, "site")


def test_what_may_stand_in_a_header():
    assert all(map(is_scalar, (None, True, 1, -(2**63), 1.5, "text")))
    assert not any(map(is_scalar, (2**63, "two\nlines", "x" * 1025, "\ud800", b"", [], {})))


def test_what_others_sent_is_printed_short_and_plain():
    assert shown("\x1b[31m") == "'\\x1b[31m'" and len(shown("x" * 1000)) == 60
    assert issubclass(Refused, ValueError)
