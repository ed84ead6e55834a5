"""TLS certificates for a consortium: one authority, and a key and a certificate for every machine.

    authority/ca.crt     for every machine, to trust            authority/ca.key    stays where certificates are made
    charite/node.crt     what the machine shows                    charite/node.key    stays on the machine

Ray's TLS is mutual: a machine that connects shows a certificate of the authority too. So the authority
decides who is in the consortium, and its key is kept accordingly. A machine is identified by the names and
addresses in its certificate.

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> authority = Authority.make(Path(folder.name) / "authority")
>>> node = authority.issue(Path(folder.name) / "charite", "charite", ["ray.charite.example", "127.0.0.1"], days=90)
>>> (node.check() - datetime.now(UTC)).days
89
>>> Files(node.certificate, node.key, Authority.make(Path(folder.name) / "other").certificate).check()
Traceback (most recent call last):
fedjax_core.sites.transport.certificates.WrongAuthority: ...node.crt is not signed by .../other/ca.crt...
>>> folder.cleanup()
"""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedjax_core.files import read_private, write_private, write_whole
from fedjax_core.sites.refusal import check_name

VARIABLES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
_AHEAD = timedelta(minutes=10)  # tolerance for clocks


class CertificateError(ValueError):
    """A certificate or its key cannot be used; the text says why and what to do."""


class WrongAuthority(CertificateError):
    """The certificate was signed by another authority than the one trusted here."""


class Expired(CertificateError):
    """The certificate is not valid now."""


class Files(NamedTuple):
    """The TLS files of one machine: its certificate, its key, and the authority's certificate."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def named_by(cls, environment: Mapping[str, str]) -> "Files":
        """The files that Ray's variables name; raises if one is not set."""
        if missing := [name for name in VARIABLES if not environment.get(name)]:
            raise CertificateError(
                f"{' and '.join(missing)} is not set: it names a file that `fedjax-core certificates make` wrote"
            )
        return cls(*(Path(environment[name]) for name in VARIABLES))

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which Ray uses these files."""
        return {
            "RAY_USE_TLS": "1",
            **dict(zip(VARIABLES, (str(path.absolute()) for path in self), strict=True)),
        }

    def check(self, now: datetime | None = None) -> datetime:
        """Checks the files, and returns when the certificate ends; raises a `CertificateError` if they do not
        fit or are not valid now."""
        now = now or datetime.now(UTC)
        certificate, authority = _certificate(self.certificate), _certificate(self.authority)
        key = _key(self.key)
        if key.public_key() != certificate.public_key():
            raise CertificateError(
                f"{self.key} is not the key to {self.certificate}: copy both from where they were made"
            )
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            raise WrongAuthority(
                f"{self.certificate} is not signed by {self.authority}: the others would not let this machine in, nor it them; "
                "all machines of a consortium have certificates of one authority"
            ) from None
        for path, one in ((self.certificate, certificate), (self.authority, authority)):
            if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
                valid = f"{one.not_valid_before_utc:%Y-%m-%d %H:%M} to {one.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
                raise Expired(
                    f"{path} is valid from {valid}, and it is {now:%Y-%m-%d %H:%M}: "
                    "make another with `fedjax-core certificates make`, or set the clock"
                )
        return min(certificate.not_valid_after_utc, authority.not_valid_after_utc)


@dataclass(frozen=True)
class Authority:
    """The authority that signs the certificates of a consortium."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """The authority's certificate, which every machine gets."""
        return self.folder / "ca.crt"

    @classmethod
    def make(cls, folder: str | os.PathLike[str], name: str = "consortium", days: int = 3650) -> "Authority":
        """Makes a new authority in a folder that has none."""
        authority = cls(Path(folder))
        key = ec.generate_private_key(ec.SECP256R1())
        _write_key(authority.folder / "ca.key", key)
        usage = _usage(key_cert_sign=True, crl_sign=True)
        builder = (
            _builder(name, name, key, days)
            .add_extension(x509.BasicConstraints(True, 0), True)
            .add_extension(usage, True)
        )
        write_whole(authority.certificate, builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
        return authority

    def issue(
        self, folder: str | os.PathLike[str], name: str, hosts: Sequence[str], days: int = 365
    ) -> Files:
        """Makes a key and a certificate in `folder` for a machine with these host names and addresses, with a
        copy of the authority's."""
        if not hosts:
            raise CertificateError(
                f"the certificate of {name} needs the names or addresses by which the others reach the machine"
            )
        authority, its_key, folder = (
            _certificate(self.certificate),
            _key(self.folder / "ca.key"),
            Path(folder),
        )
        key = ec.generate_private_key(ec.SECP256R1())
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = (
            _builder(
                check_name(name, "the machine"), authority.subject, key, days, authority.not_valid_after_utc
            )
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(_usage(digital_signature=True), True)
            .add_extension(uses, False)
            .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(its_key.public_key()), False)
        )
        files = Files(folder / "node.crt", folder / "node.key", folder / "ca.crt")
        _write_key(files.key, key)
        write_whole(files.certificate, builder.sign(its_key, SHA256()).public_bytes(Encoding.PEM))
        write_whole(files.authority, self.certificate.read_bytes())
        return files


def hosts_of(path: str | os.PathLike[str]) -> list[str]:
    """The names and addresses for which a machine's certificate was made."""
    names = _certificate(Path(path)).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(host.value) for host in names]


def describe(path: str | os.PathLike[str], now: datetime | None = None) -> str:
    """Describes a certificate in one line: subject, hosts, end, and days left."""
    one = _certificate(Path(path))
    try:
        hosts = ", ".join(hosts_of(path))
    except x509.ExtensionNotFound:
        hosts = "an authority"
    left = (one.not_valid_after_utc - (now or datetime.now(UTC))).days
    return f"{one.subject.rfc4514_string()} ({hosts}) until {one.not_valid_after_utc:%Y-%m-%d}, {left} days"


def _builder(
    subject: str, issuer: Any, key: Any, days: int, until: datetime | None = None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer) if isinstance(issuer, str) else issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _AHEAD)
        .not_valid_after(end if until is None else min(end, until))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(**yes: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
    )
    return x509.KeyUsage(
        **{**dict.fromkeys((*names, "crl_sign", "encipher_only", "decipher_only"), False), **yes}
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    try:
        write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except FileExistsError:
        raise FileExistsError(
            f"{path} is there already: choose another folder, or move it away where it has expired"
        ) from None


def _key(path: Path) -> Any:
    try:
        return load_pem_private_key(read_private(path, "this private key"), password=None)
    except (ValueError, TypeError):
        raise CertificateError(f"{path} holds no unencrypted private key") from None


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise CertificateError(f"{path} holds no certificate in PEM form") from None
