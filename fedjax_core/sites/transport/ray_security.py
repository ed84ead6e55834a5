"""Security checks before a site joins a Ray: a private token, valid TLS certificates, the right peer.

    RAY_AUTH_MODE=token           RAY_AUTH_TOKEN_PATH=charite/token          refuses others without the token
    RAY_USE_TLS=1                 RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY, RAY_TLS_CA_CERT: see certificates.py

These variables are set on every machine, for the process that starts or joins Ray there. With Ray 2.60, TLS
(1.3, both ends showing certificates) covers all traffic between machines: its heads, nodes and workers, and
the objects that move. Only each node's agent for runtime environments stays plain HTTP; its own node calls
it, and the federation does not use it.

>>> lacking({})[0]
'token authentication (RAY_AUTH_MODE=token)'
"""

import contextlib
import itertools
import os
import secrets
import socket
import ssl
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from fedjax_core.files import read_private, write_private
from fedjax_core.sites.refusal import listed
from fedjax_core.sites.transport.certificates import VARIABLES as VARIABLES
from fedjax_core.sites.transport.certificates import Authority, CertificateError, Files, hosts_of

_SECONDS = 5.0
# The folder beside the authority's key with all certificates that it has made, which are public
_ISSUED = "issued"


class InsecureRay(RuntimeError):
    """The Ray cluster lacks a protection that the federation needs."""


def preflight(insecure_local: bool = False, address: str | None = None) -> None:
    """Raises `InsecureRay` if this process would talk to Ray without a token or TLS, or to another Ray."""
    if insecure_local:
        return
    missing = lacking(os.environ)
    if missing:
        raise InsecureRay(
            f"this Ray cluster lacks {' and '.join(missing)}: whoever reaches it can run code at every site. Set them on all its nodes, "
            "or give insecure_local=True (--insecure-local) where nobody else can reach it."
        )
    if address is not None and (wrong := greeting(address, Files.named_by(os.environ))) is not None:
        raise InsecureRay(f"{wrong}. Nothing was sent to it.")


def lacking(environment: Mapping[str, str]) -> list[str]:
    """The protections that these variables lack for a secure Ray, in words."""
    missing = []
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        missing.append("token authentication (RAY_AUTH_MODE=token)")
    elif (wrong := _token(environment)) is not None:
        missing.append(wrong)
    if environment.get("RAY_USE_TLS", "").lower() not in ("1", "true"):
        missing.append("TLS (RAY_USE_TLS=1, with RAY_TLS_* naming certificates)")
    else:
        try:
            Files.named_by(environment).check()
        except (CertificateError, OSError) as error:
            missing.append(f"TLS that works ({error})")
    return missing


def greeting(address: str, files: Files) -> str | None:
    """The problem that a TLS handshake with these files finds at the Ray of `host:port`; None if nothing."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(files.authority)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), _SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            # In TLS 1.3 a server says only now that it does not take our certificate: by an alert or, as Ray does, by
            # hanging up.
            try:
                taken = bool(secure.recv(1))
            except ConnectionResetError:
                taken = False
    except ssl.SSLCertVerificationError as error:
        return f"the Ray at {address} shows a certificate that is not good for {host} by {files.authority} ({error.verify_message})"
    except ssl.SSLError as error:
        if "ALERT" in str(error.reason):
            return f"the Ray at {address} does not take {files.certificate} ({error.reason}): it trusts another authority"
        return f"the Ray at {address} speaks plaintext, not TLS: start it with RAY_USE_TLS=1 and certificates"
    except ConnectionRefusedError:
        return f"nothing listens at {address}: start Ray there first, or correct the address"
    except (OSError, ValueError) as error:
        return (
            f"the Ray at {address} cannot be reached, or does not speak TLS ({type(error).__name__}: {error})"
        )
    return (
        None
        if taken
        else f"the Ray at {address} does not take {files.certificate} (it hung up): it trusts another authority"
    )


def equip(
    folder: str | os.PathLike[str], nodes: Mapping[str, Sequence[str]], days: int = 365
) -> dict[str, Files]:
    """Makes each node's files in folder/NODE: node.crt for its hosts, node.key, ca.crt and token, to be
    copied to that node only.

    The authority and the token are in folder/authority, and made if missing: more nodes may be added
    later."""
    home = Path(folder) / "authority"
    authority = Authority(home) if (home / "ca.key").exists() else Authority.make(home)
    if not (home / "token").exists():
        write_private(home / "token", secrets.token_hex(32).encode())
    token = read_private(home / "token", "this token")
    issued = {}
    for name, hosts in nodes.items():
        issued[name] = authority.issue(Path(folder) / name, name, hosts, days)
        write_private(Path(folder) / name / "token", token)
        (home / _ISSUED).mkdir(exist_ok=True)
        (home / _ISSUED / f"{name}.crt").write_bytes(issued[name].certificate.read_bytes())
    return issued


def withdraw(
    folder: str | os.PathLike[str], names: Collection[str] = (), days: int = 365
) -> dict[str, Files]:
    """Makes new files, with a new authority and token, for every machine but those named.

    The old files move to folder/withdrawn-N. They stay valid until the others have their new folders, and Ray
    was restarted with these."""
    home = Path(folder)
    issued = {path.parent.name: path for path in sorted(home.glob("*/node.crt"))}
    issued |= {path.stem: path for path in sorted((home / "authority" / _ISSUED).glob("*.crt"))}
    if unknown := sorted(set(names) - set(issued)):
        raise CertificateError(
            f"{home} has made no certificate for {listed(unknown)}: it has for {listed(issued) or 'nobody'}"
        )
    stay = {name: hosts_of(path) for name, path in issued.items() if name not in names}
    if not stay:
        raise CertificateError(
            f"nobody is left of {listed(issued) or 'nobody'}: a consortium that ends removes its folder and stops Ray"
        )
    old = next(path for n in itertools.count(1) if not (path := home / f"withdrawn-{n}").exists())
    old.mkdir(mode=0o700)
    for name in ("authority", *issued):
        if (home / name).exists():
            (home / name).rename(old / name)
    return equip(home, stay, days)


def environment(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The environment variables by which Ray uses the files that `equip` wrote to this folder."""
    folder = Path(folder).absolute()
    files = Files(folder / "node.crt", folder / "node.key", folder / "ca.crt")
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), **files.environment}


def _token(environment: Mapping[str, str]) -> str | None:
    """The problem of the token that Ray would use; None if there is none."""
    if environment.get("RAY_AUTH_TOKEN"):
        return None
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        token = read_private(path, "this token").strip()
    except FileNotFoundError:
        return f"a token ({path} does not exist: copy the cluster's there, mode 600, and name it in RAY_AUTH_TOKEN_PATH)"
    except OSError as error:
        return f"a token that is secret ({error})"
    return None if token else f"a token ({path} is empty)"


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Makes Ray listen on loopback alone: otherwise, on Linux, it replaces 127.0.0.1 by the machine's address
    and listens everywhere."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        # Ray forks only to exec its own programs, which is safe and not what JAX's warning is about.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
