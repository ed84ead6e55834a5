"""A Ray without protection is refused, each lack with its own message, and a Ray that is not ours is known by
its handshake."""

import pytest

from fedjax_core.cli import main
from fedjax_core.sites.own_file import VARIABLE
from fedjax_core.sites.transport import ray_security
from fedjax_core.sites.transport.certificates import CertificateError, Files, WrongAuthority, hosts_of
from fedjax_core.sites.transport.ray_security import (
    InsecureRay,
    environment,
    equip,
    greeting,
    lacking,
    preflight,
    withdraw,
)
from tests.sites.tls_server import server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `equip` makes for two machines."""
    found = tmp_path_factory.mktemp("tls")
    equip(found, {"charite": ["127.0.0.1"]})
    equip(found, {"mayo": ["ray.mayo.example"]})  # later, by the same authority
    return found


@pytest.fixture
def safe(folder, monkeypatch):
    """This process as it would be on a machine where all is well."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for name, value in environment(folder / "charite").items():
        monkeypatch.setenv(name, value)
    return folder / "charite"


def test_with_all_of_it_nothing_is_lacking(folder):
    for name in ("charite", "mayo"):
        assert lacking(environment(folder / name)) == []
    assert (folder / "charite" / "token").read_bytes() == (folder / "mayo" / "token").read_bytes()


OTHERS = {
    "no token mode": (
        lambda at: {"RAY_AUTH_MODE": "disabled"},
        r"lacks token authentication \(RAY_AUTH_MODE=token\): whoever",
    ),
    "no token": (
        lambda at: {"RAY_AUTH_TOKEN_PATH": str(at / "absent")},
        r"lacks a token \(.*absent does not exist",
    ),
    "an empty token": (
        lambda at: {"RAY_AUTH_TOKEN_PATH": str(made(at / "empty", b""))},
        r"lacks a token \(.*empty is empty",
    ),
    "a token for all to read": (
        lambda at: {"RAY_AUTH_TOKEN_PATH": str(made(at / "open", b"x", 0o644))},
        r"lacks a token that is secret \(.*open has mode 0644",
    ),
    "plaintext": (lambda at: {"RAY_USE_TLS": "0"}, r"lacks TLS \(RAY_USE_TLS=1"),
    "no certificate": (
        lambda at: {"RAY_TLS_SERVER_CERT": ""},
        r"lacks TLS that works \(RAY_TLS_SERVER_CERT is not set",
    ),
    "a certificate that is not there": (
        lambda at: {"RAY_TLS_SERVER_CERT": str(at / "absent")},
        r"TLS that works \(.*No such file",
    ),
    "a wrong authority": (
        lambda at: {"RAY_TLS_CA_CERT": str(other(at).authority)},
        r"TLS that works \(.*is not signed by",
    ),
    "an expired certificate": (lambda at: other(at, days=0).environment, r"TLS that works \(.*is valid from"),
    "a key for all to read": (
        lambda at: readable(other(at)).environment,
        r"TLS that works \(.*node.key has mode 0644",
    ),
}


def made(path, data, mode=0o600):
    path.write_bytes(data)
    path.chmod(mode)
    return path


def other(at, days=10):
    return equip(at, {"other": ["127.0.0.1"]}, days)["other"]


def readable(files):
    files.key.chmod(0o644)
    return files


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.meets(
    "164.312(e)(1)",
    by="TLS with certificates at both ends and a token, without which nothing starts between machines",
)
def test_each_lack_is_refused_with_its_own_message(name, safe, tmp_path, monkeypatch):
    preflight()
    changes, said = OTHERS[name]
    for key, value in changes(tmp_path).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InsecureRay, match=said):
        preflight()
    preflight(insecure_local=True)


def test_a_ray_of_the_same_authority_is_joined(safe, folder):
    with server(folder / "charite") as port:
        preflight(address=f"127.0.0.1:{port}")


@pytest.mark.meets("164.312(e)(1)", by="a cluster of another authority is refused before anything is sent")
def test_a_ray_that_is_not_ours_is_refused_before_anything_is_sent(safe, folder, tmp_path):
    stranger = equip(tmp_path, {"stranger": ["127.0.0.1"]})["stranger"].certificate.parent
    with (
        server(stranger) as port,
        pytest.raises(InsecureRay, match=r"shows a certificate that is not good for 127.0.0.1"),
    ):
        preflight(address=f"127.0.0.1:{port}")
    with (
        server(folder / "mayo") as port,
        pytest.raises(InsecureRay, match=r"not good for 127.0.0.1 by .*mismatch"),
    ):
        preflight(address=f"127.0.0.1:{port}")  # of our authority, but made for another machine
    with server(None) as port, pytest.raises(InsecureRay, match="speaks plaintext, not TLS"):
        preflight(address=f"127.0.0.1:{port}")
    with pytest.raises(InsecureRay, match=f"nothing listens at 127.0.0.1:{port}"):
        preflight(address=f"127.0.0.1:{port}")


def test_a_ray_that_does_not_know_us_says_so(folder, tmp_path):
    """Which only happens where the two trust each other's authority one way."""
    stranger = equip(tmp_path, {"stranger": ["127.0.0.1"]})["stranger"]
    known = stranger._replace(authority=folder / "charite" / "ca.crt")
    with server(folder / "charite") as port:
        assert "does not take" in greeting(f"127.0.0.1:{port}", known)


@pytest.mark.parametrize("roughly", [False, True])
def test_a_ray_that_hangs_up_does_not_know_us(folder, roughly):
    """As Ray's gRPC does, which sends no alert: by the end of the stream or, where the kernel drops what was
    not read, by a reset."""
    files = Files.named_by(environment(folder / "charite"))
    with server(folder / "charite", hangs_up=True, roughly=roughly) as port:
        assert "does not take" in greeting(f"127.0.0.1:{port}", files)


def test_the_environment_is_whole(folder):
    assert set(environment(folder / "charite")) == {
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_USE_TLS",
        *ray_security.VARIABLES,
    }


@pytest.fixture
def withdrawn(tmp_path):
    """(folder, the files of charite before it was withdrawn, the files of the others after)."""
    old = equip(
        tmp_path, {"charite": ["127.0.0.1"], "mayo": ["127.0.0.1", "ray.mayo.example"], "oslo": ["127.0.0.1"]}
    )["charite"]
    made(tmp_path / "kept", (tmp_path / "charite" / "token").read_bytes())
    copied = {
        name: made(tmp_path / f"old-{name}", getattr(old, name).read_bytes())
        for name in ("certificate", "key", "authority")
    }
    # as where a folder was moved to its machine: whose it was is known all the same
    (tmp_path / "oslo" / "node.crt").unlink()
    return tmp_path, old._replace(**copied), withdraw(tmp_path, ["charite"])


def test_who_is_withdrawn_has_neither_a_certificate_nor_the_token_of_the_others(withdrawn):
    folder, old, others = withdrawn
    assert set(others) == {"mayo", "oslo"} and not (folder / "charite").exists()
    tokens = {(folder / name / "token").read_bytes() for name in ("mayo", "oslo", "authority")}
    assert len(tokens) == 1 and (folder / "kept").read_bytes() not in tokens
    assert all(lacking(environment(folder / name)) == [] for name in others)
    assert hosts_of(others["mayo"].certificate) == ["127.0.0.1", "ray.mayo.example"]
    for wrong in (
        old._replace(authority=others["mayo"].authority),
        others["mayo"]._replace(authority=old.authority),
    ):
        with pytest.raises(WrongAuthority):
            wrong.check()


def test_ray_that_was_started_anew_does_not_let_in_who_was_withdrawn(withdrawn):
    folder, old, others = withdrawn
    with server(folder / "mayo") as port:
        assert greeting(f"127.0.0.1:{port}", others["oslo"]) is None
    with server(folder / "mayo") as port:
        assert "is not good for 127.0.0.1" in greeting(f"127.0.0.1:{port}", old)
    with server(folder / "mayo") as port:  # whom the withdrawn trusts is its own affair
        assert "does not take" in greeting(
            f"127.0.0.1:{port}", old._replace(authority=others["mayo"].authority)
        )


def test_all_may_be_made_anew_and_nobody_may_not(withdrawn, capsys):
    folder = withdrawn[0]
    with pytest.raises(
        CertificateError, match=r"has made no certificate for 'charite': it has for 'mayo', 'oslo'"
    ):
        withdraw(folder, ["charite"])
    with pytest.raises(CertificateError, match="nobody is left of 'mayo', 'oslo'"):
        withdraw(folder, ["mayo", "oslo"])
    before = (folder / "mayo" / "token").read_bytes()
    assert main(["certificates", "withdraw", str(folder)]) == 0
    said = capsys.readouterr().out
    assert (
        "Stop Ray on every machine now" in said
        and said.count("RAY_AUTH_TOKEN_PATH=") == 2
        and f"{VARIABLE}=PATH" in said
    )
    assert (folder / "mayo" / "token").read_bytes() != before
    kept = {path.name for path in folder.glob("withdrawn-*")}
    assert kept == {"withdrawn-1", "withdrawn-2"} and all(
        (folder / name).stat().st_mode & 0o777 == 0o700 for name in kept
    )
