"""Identities: an Ed25519 key made at each site, and the roster of everybody's public keys.

    charite.key     private, PKCS#8 PEM, readable by its owner alone; never leaves the site
    charite.pub     charite = "ed25519:<base64>"          one line, sent to the coordinator by any means that cannot be forged
    roster.toml     [keys]     such lines, one a site
                    [revoked]  "ed25519:<base64>" = "why"
                    [examples] charite = 50000                    the largest number of examples agreed with it; see claims.py

`cryptography` makes and stores keys; libsodium, in PyNaCl, signs and verifies the same signatures in little
more than half the time. A signature covers a purpose and the data, so a message's signature is not valid for
an audit entry. The roster decides: the right key for another name, a revoked key and an unknown key give
different errors, because the ways out differ.

>>> key = SiteKey.make("charite")
>>> roster = Roster({"charite": key.public})
>>> roster.verify("charite", key.public.fingerprint, "message", b"hello", key.sign("message", b"hello"))
>>> roster.verify("charite", key.public.fingerprint, "message", b"hullo", key.sign("message", b"hello"))
Traceback (most recent call last):
fedjax_core.sites.wire.identity.BadSignature: the signature of 'charite' does not fit what it should sign...
"""

import base64
import hashlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from fedjax_core.files import read_private, read_text, write_private, write_whole
from fedjax_core.sites.refusal import Refused, check_name, listed, shown

_SCHEME = "ed25519:"
_SIGNATURE = 64  # bytes


class UnknownSender(Refused):
    """The sender's name is not in the roster."""

    code = "unknown-sender"


class RevokedKey(Refused):
    """The key was withdrawn."""

    code = "revoked-key"


class WrongKey(Refused):
    """The message is signed with a key that is not the sender's: another site's, or nobody's."""

    code = "wrong-key"


class BadSignature(Refused):
    """The signature is not over this data."""

    code = "bad-signature"


@dataclass(frozen=True)
class PublicKey:
    """The public half of a key."""

    raw: bytes  # 32 bytes

    @classmethod
    def parse(cls, text: str) -> "PublicKey":
        """Reads a key in its text form; raises ValueError for anything else."""
        try:
            raw = base64.b64decode(text.removeprefix(_SCHEME), validate=True)
        except ValueError:
            raw = b""
        if len(raw) != 32 or cls(raw).text != text:
            raise ValueError(
                f"{shown(text)} is not a public key: it should read ed25519: and 44 characters, as `fedjax-core keys show` prints"
            )
        return cls(raw)

    @property
    def text(self) -> str:
        """`ed25519:` and the key in base64."""
        return _SCHEME + base64.b64encode(self.raw).decode()

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of its SHA-256, to compare by telephone, and to name the key in messages."""
        return hashlib.sha256(self.raw).hexdigest()[:32]

    def fits(self, purpose: str, data: bytes, signature: bytes) -> bool:
        """Whether the signature was made with this key over this data for this purpose."""
        if len(signature) != _SIGNATURE or len(self.raw) != 32:
            return False
        try:
            crypto_sign_open(signature + _tagged(purpose, data), self.raw)
        except BadSignatureError:
            return False
        return True


@dataclass(frozen=True)
class SiteKey:
    """A site's name and its private key. Prints without the key."""

    name: str
    private: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def make(cls, name: str) -> "SiteKey":
        """Makes a new key from the operating system's randomness."""
        return cls(check_name(name, "the site"), Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SiteKey":
        """Loads the key in `<name>.key`; raises if others could have read it."""
        path = Path(path)
        pem = read_private(path, "this private key")
        try:
            private: object = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):  # no PEM, or one with a password
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError(
                f"{path} holds no unencrypted Ed25519 private key: make one with `fedjax-core keys make`"
            )
        return cls(check_name(path.stem, "the site"), private)

    @cached_property
    def public(self) -> PublicKey:
        """The public half, which may travel."""
        return PublicKey(self.private.public_key().public_bytes_raw())

    @cached_property
    def _signer(self) -> bytes:
        return crypto_sign_seed_keypair(self.private.private_bytes_raw())[1]

    @property
    def line(self) -> str:
        """The public half as a line of a roster."""
        return f'{self.name} = "{self.public.text}"'

    def sign(self, purpose: str, data: bytes) -> bytes:
        """The signature, 64 bytes, over the data and its purpose."""
        return crypto_sign(_tagged(purpose, data), self._signer)[:_SIGNATURE]

    def secret(self, purpose: str) -> bytes:
        """32 secret bytes for a purpose, always the same: HKDF-SHA256 of the private key."""
        return HKDF(SHA256(), 32, salt=None, info=_tagged(purpose, b"")).derive(
            self.private.private_bytes_raw()
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `<name>.key` (mode 0600) and `<name>.pub`: the path of the first. Never overwrites a key."""
        path = Path(folder) / f"{self.name}.key"
        try:
            write_private(path, self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        except FileExistsError:
            raise FileExistsError(
                f"{path} is there already, and without it the site could not prove who it is. Choose another folder or name."
            ) from None
        write_whole(path.with_suffix(".pub"), self.line + "\n")
        return path


@dataclass(frozen=True)
class Roster:
    """The public keys of all parties by name, and the revoked keys."""

    keys: Mapping[str, PublicKey]
    revoked: Mapping[PublicKey, str] = field(default_factory=dict)
    """Each withdrawn key, with the reason. A key may be in both tables: being revoked is what counts."""
    examples: Mapping[str, int] = field(default_factory=dict)
    """The largest number of examples agreed on with a site; a site that is missing here is compared with the
    others (claims.py)."""

    def __post_init__(self) -> None:
        owners: dict[PublicKey, str] = {}
        for name, key in self.keys.items():
            check_name(name, "the roster's site")
            if key in owners:
                raise ValueError(
                    f"the roster gives {owners[key]!r} and {name!r} one key: they could sign for each other; each makes its own"
                )
            owners[key] = name
        for name, most in self.examples.items():
            if type(most) is not int or most < 1:
                raise ValueError(
                    f"the roster's [examples] has {name} = {most!r}; it should be the largest number of examples agreed on"
                )
            if name not in self.keys:
                raise ValueError(
                    f"the roster's [examples] names {name!r}, who has no key in it: add the key, or take the line out"
                )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Roster":
        """Reads a roster from a TOML file with the table `keys`, and optionally `revoked` and `examples`."""
        tables = _toml(path)
        if unknown := sorted(set(tables) - {"keys", "revoked", "examples"}):
            raise ValueError(
                f"{path} has {listed(unknown)}, which a roster does not: its tables are [keys], [revoked] and [examples]"
            )
        keys, revoked, examples = (
            tables.get("keys", {}),
            tables.get("revoked", {}),
            tables.get("examples", {}),
        )
        for table, name in ((keys, "keys"), (revoked, "revoked")):
            if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
                raise ValueError(f'{path}: [{name}] must be a table of lines like charite = "ed25519:..."')
        if not isinstance(examples, dict):
            raise ValueError(f"{path}: [examples] must be a table of lines like charite = 50000")
        try:
            withdrawn = {PublicKey.parse(text): str(why) for text, why in revoked.items()}
            return cls({name: PublicKey.parse(text) for name, text in keys.items()}, withdrawn, examples)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def verify(self, name: str, fingerprint: str, purpose: str, data: bytes, signature: bytes) -> None:
        """Raises a `Refused` unless the signature was made by `name` with the key of this fingerprint."""
        for key, reason in self.revoked.items():
            if key.fingerprint == fingerprint:
                raise RevokedKey(
                    f"the key {fingerprint} of {shown(name)} is revoked ({reason}); the site makes a new one and sends its public half"
                )
        if name not in self.keys:
            raise UnknownSender(
                f"{shown(name)} is not in the roster; add its line from `fedjax-core keys show`, or ask who sends this"
            )
        key = self.keys[name]
        if key.fingerprint != fingerprint:
            owner = next(
                (repr(other) for other, one in self.keys.items() if one.fingerprint == fingerprint),
                "nobody in the roster",
            )
            raise WrongKey(
                f"signed as {name!r} with the key {shown(fingerprint)}, which belongs to {owner}; {name!r} has {key.fingerprint}. "
                "If the site made a new key, put it into the roster and revoke the old one."
            )
        if not key.fits(purpose, data, signature):
            raise BadSignature(
                f"the signature of {name!r} does not fit what it should sign: it was changed on its way, or forged; ask for it again"
            )


def read_public(path: str | os.PathLike[str]) -> tuple[str, PublicKey]:
    """(name, key) of a `.pub` file."""
    entries = _toml(path)
    if len(entries) != 1 or not isinstance(text := next(iter(entries.values())), str):
        raise ValueError(
            f'{path} should hold one line like charite = "ed25519:...", as `fedjax-core keys show` prints it'
        )
    return check_name(next(iter(entries)), "the site"), PublicKey.parse(text)


def _toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:  # a name that is there twice, too
        raise ValueError(f"{path} is not TOML: {error}") from None


def _tagged(purpose: str, data: bytes) -> bytes:
    return f"fedjax_core {purpose}\0".encode() + data
