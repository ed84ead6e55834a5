"""Keys stay private, and every way of not being who one says has its own refusal."""

import os
import re

import pytest

from fedjax_core.sites.wire.identity import (
    BadSignature,
    PublicKey,
    RevokedKey,
    Roster,
    SiteKey,
    UnknownSender,
    WrongKey,
    read_public,
)
from tests.sites.parties import CHARITE, MAYO, OLD, ROSTER, STRANGER


def test_a_key_comes_back_from_its_files(tmp_path):
    path = CHARITE.save(tmp_path / "keys")
    assert path.stat().st_mode & 0o777 == 0o600 and path.name == "charite.key"
    assert SiteKey.load(path).public == CHARITE.public and SiteKey.load(path).name == "charite"
    assert read_public(path.with_suffix(".pub")) == ("charite", CHARITE.public)
    assert "PRIVATE" not in repr(CHARITE) and "Ed25519" not in repr(CHARITE)


def test_a_key_is_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        path = CHARITE.save(tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
@pytest.mark.meets("164.312(a)(1)", by="keys that their owner alone can read")
def test_a_key_that_others_could_read_is_refused(tmp_path, mode):
    path = CHARITE.save(tmp_path)
    path.chmod(mode)
    with pytest.raises(
        PermissionError, match=rf"has mode {mode:04o} .* others may have read this private key.*chmod 600"
    ):
        SiteKey.load(path)


def test_a_key_is_never_overwritten(tmp_path):
    before = CHARITE.save(tmp_path).read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        SiteKey.make("charite").save(tmp_path)
    assert (tmp_path / "charite.key").read_bytes() == before


@pytest.mark.parametrize(
    "text", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_file_that_is_no_key_is_refused(tmp_path, text):
    path = tmp_path / "charite.key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="holds no unencrypted Ed25519 private key"):
        SiteKey.load(path)


def test_a_key_of_another_scheme_is_refused(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path = tmp_path / "charite.key"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    path.chmod(0o600)
    with pytest.raises(ValueError, match="holds no unencrypted Ed25519 private key"):
        SiteKey.load(path)


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda t: t[:-1],
        lambda t: t + "=",
        lambda t: t[8:],
        lambda t: t.replace("=", "\n="),
        lambda t: "",
    ],
)
def test_text_that_is_no_public_key_is_refused(change):
    with pytest.raises(ValueError, match="is not a public key"):
        PublicKey.parse(change(CHARITE.public.text))


@pytest.mark.meets(
    "164.312(d)", by="Ed25519 signatures by keys of a roster; unknown and revoked ones are refused"
)
def test_who_signed_is_told_apart():
    signature = CHARITE.sign("message", b"data")

    def verify(name="charite", key=CHARITE, purpose="message", data=b"data", signature=signature):
        ROSTER.verify(name, key.public.fingerprint, purpose, data, signature)

    verify()
    for changes in (
        {"data": b"datb"},
        {"purpose": "audit"},
        {"signature": bytes(64)},
        {"signature": b""},
        {"name": "mayo", "key": MAYO},
    ):
        with pytest.raises(BadSignature, match="does not fit what it should sign"):
            verify(**changes)
    with pytest.raises(UnknownSender, match="'stranger' is not in the roster"):
        verify("stranger", STRANGER)
    with pytest.raises(WrongKey, match="belongs to nobody in the roster; 'charite' has"):
        verify(key=STRANGER)
    with pytest.raises(WrongKey, match=r"signed as 'mayo' with the key .* which belongs to 'charite'"):
        verify("mayo")
    with pytest.raises(RevokedKey, match=r"of 'mayo' is revoked \(laptop lost\)"):
        verify("mayo", OLD, signature=OLD.sign("message", b"data"))


def test_a_key_in_both_tables_is_revoked():
    roster = Roster({"charite": CHARITE.public}, {CHARITE.public: "left the study"})
    with pytest.raises(RevokedKey, match="left the study"):
        roster.verify("charite", CHARITE.public.fingerprint, "message", b"", CHARITE.sign("message", b""))


def test_a_public_key_that_is_no_point_verifies_nothing():
    assert not PublicKey(b"\xff" * 32).fits("message", b"", bytes(64))


def test_a_roster_comes_from_its_file(tmp_path):
    path = tmp_path / "roster.toml"
    path.write_text(f'[keys]\n{CHARITE.line}\n{MAYO.line}\n[revoked]\n"{OLD.public.text}" = "laptop lost"\n')
    assert Roster.read(path) == ROSTER
    with path.open("a") as file:
        file.write("[examples]\ncharite = 303\n")
    assert Roster.read(path) == Roster(ROSTER.keys, ROSTER.revoked, {"charite": 303})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[keys\n", "is not TOML"),
        ("[keys]\na = 1\n", r"\[keys\] must be a table of lines"),
        ("keys = 1\n", r"\[keys\] must be a table of lines"),
        ('[keys]\na = "x"\n', "'x' is not a public key"),
        ('[keys]\n"a b" = "{key}"\n', "the roster's site 'a b' is not a name"),
        ('[keys]\na = "{key}"\na = "{key}"\n', "is not TOML"),
        ('[keys]\na = "{key}"\nb = "{key}"\n', "the roster gives 'a' and 'b' one key"),
        (
            "[sites]\n",
            r"has 'sites', which a roster does not: its tables are \[keys\], \[revoked\] and \[examples\]",
        ),
        ("examples = 1\n", r"\[examples\] must be a table of lines"),
        (
            '[keys]\na = "{key}"\n[examples]\nb = 1\n',
            "names 'b', who has no key in it: add the key, or take the line out",
        ),
        (
            '[keys]\na = "{key}"\n[examples]\na = 0\n',
            "has a = 0; it should be the largest number of examples agreed on",
        ),
        ('[keys]\na = "{key}"\n[examples]\na = true\n', "has a = True; it should be the largest number"),
    ],
)
@pytest.mark.meets(
    "164.312(a)(2)(i)", by="one name and one key for each site; a roster with two of either is refused"
)
def test_a_roster_that_is_not_in_order_is_refused(tmp_path, text, said):
    path = tmp_path / "roster.toml"
    path.write_text(text.replace("{key}", CHARITE.public.text))
    with pytest.raises(ValueError, match=said) as error:
        Roster.read(path)
    assert re.match(re.escape(str(path)), str(error.value))


def test_a_pub_file_has_one_line(tmp_path):
    path = tmp_path / "x.pub"
    path.write_text(f"{CHARITE.line}\n{MAYO.line}\n")
    with pytest.raises(ValueError, match="should hold one line"):
        read_public(path)


def test_signatures_are_those_of_another_library():
    data = b"hello"
    signature, signed = CHARITE.sign("message", data), b"fedjax_core message\0" + data
    assert signature == CHARITE.private.sign(signed)
    CHARITE.private.public_key().verify(signature, signed)  # raises where it does not fit
    assert CHARITE.public.fits("message", data, CHARITE.private.sign(signed))


@pytest.mark.parametrize("signature", [b"", b"\0" * 63, b"\0" * 64, b"\xff" * 64, b"\0" * 65])
def test_what_is_no_signature_does_not_fit(signature):
    assert not CHARITE.public.fits("message", b"hello", signature)
    assert not PublicKey(bytes(32)).fits("message", b"hello", signature)
