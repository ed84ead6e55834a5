"""Certificates that fit are taken, and each way in which they cannot is told from the others."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest

from fedjax_core.sites.transport.certificates import (
    Authority,
    CertificateError,
    Expired,
    Files,
    WrongAuthority,
    describe,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(an authority, the files of one machine)."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority.make(folder / "authority")
    return authority, authority.issue(
        folder / "charite", "charite", ["ray.charite.example", "127.0.0.1"], days=30
    )


def test_openssl_takes_the_certificate_for_its_hosts_and_no_others(made):
    """By the rules of Python's own ssl, the strict ones included, in memory: client and server shake
    hands."""
    _, files = made
    assert shake_hands(files, files, "127.0.0.1") and shake_hands(files, files, "ray.charite.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(files, files, "ray.mayo.example")


def shake_hands(client, server, host):
    contexts = []
    for files, protocol in ((client, ssl.PROTOCOL_TLS_CLIENT), (server, ssl.PROTOCOL_TLS_SERVER)):
        context = ssl.SSLContext(protocol)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(files.authority)
        context.load_cert_chain(files.certificate, files.key)
        contexts.append(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        contexts[0].wrap_bio(down, up, server_hostname=host),
        contexts[1].wrap_bio(up, down, server_side=True),
    ]
    done = set()
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
        if len(done) == 2:
            return True
    return False


def test_it_says_until_when(made):
    _, files = made
    assert abs(files.check() - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert describe(files.certificate).startswith("CN=charite (ray.charite.example, 127.0.0.1) until ")
    assert describe(files.certificate).endswith(", 29 days")
    assert "(an authority)" in describe(files.authority)


@pytest.mark.parametrize("days", [-1, 31])
@pytest.mark.meets("164.312(d)", by="certificates that are not valid now are refused")
def test_one_that_is_not_valid_now_is_refused(made, days):
    with pytest.raises(Expired, match=r"node.crt is valid from .* make another"):
        made[1].check(datetime.now(UTC) + timedelta(days=days))


def test_another_authority_is_refused_even_of_the_same_name(made, tmp_path):
    other = Authority.make(tmp_path / "other")
    with pytest.raises(WrongAuthority, match=r"node.crt is not signed by .*other/ca.crt"):
        made[1]._replace(authority=other.certificate).check()


def test_the_key_of_another_is_refused(made, tmp_path):
    authority, files = made
    other = authority.issue(tmp_path / "mayo", "mayo", ["127.0.0.1"])
    with pytest.raises(CertificateError, match="is not the key to"):
        files._replace(key=other.key).check()


def test_a_private_key_that_others_can_read_is_refused(made, tmp_path):
    authority, _ = made
    files = authority.issue(tmp_path / "open", "open", ["127.0.0.1"])
    assert (
        files.key.stat().st_mode & 0o777 == 0o600
        and (authority.folder / "ca.key").stat().st_mode & 0o777 == 0o600
    )
    files.key.chmod(0o640)
    with pytest.raises(
        PermissionError, match=r"node.key has mode 0640 .* others may have read this private key"
    ):
        files.check()


def test_nothing_is_written_over_and_nothing_is_made_for_nobody(made, tmp_path):
    authority, files = made
    with pytest.raises(FileExistsError, match=r"node.key is there already"):
        authority.issue(files.key.parent, "charite", ["127.0.0.1"])
    with pytest.raises(FileExistsError, match=r"ca.key is there already"):
        Authority.make(authority.folder)
    with pytest.raises(CertificateError, match="needs the names or addresses"):
        authority.issue(tmp_path / "x", "x", [])


def test_what_is_no_certificate_and_what_is_not_named_are_told(made, tmp_path):
    nonsense = tmp_path / "nonsense.crt"
    nonsense.write_text("hello")
    with pytest.raises(CertificateError, match="holds no certificate"):
        made[1]._replace(certificate=nonsense).check()
    with pytest.raises(CertificateError, match="RAY_TLS_SERVER_KEY is not set"):
        Files.named_by({**made[1].environment, "RAY_TLS_SERVER_KEY": ""})
    assert Files.named_by(made[1].environment) == made[1]
