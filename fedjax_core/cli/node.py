"""`fedjax-core node`: Ray on a machine of the federation, with less open than `ray start` leaves."""

import os
import socket
import threading
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from fedjax_core.files import make_folder
from fedjax_core.sites.own_file import VARIABLE
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.transport import ray_node, ray_security
from fedjax_core.sites.transport.certificates import Files

# The longest path of a socket on Linux.
_LONGEST = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


def node(
    site: Positional[Path | None] = None,
    address: str | None = None,
    head: int | None = None,
    ip: str | None = None,
    ray: Path | None = None,
    folder: Path | None = None,
) -> None:
    """Runs Ray on this machine until it is stopped (Ctrl-C, SIGTERM): a site's node, or with --head the
    coordinator's.

    The token and TLS must be set up. Its files are for their owner alone, it has no dashboard, and what
    workers print stays on this machine.

    Args:
        site: The site's file: it has the site's resources, and is the one by which the site's process starts.
        address: host:port of the coordinator's Ray.
        head: The port of the coordinator's own Ray.
        ip: The address by which the other machines reach this one; as a connection to --address would have
            it, if left out.
        ray: The folder that `certificates make` wrote for this machine: `ray` beside the site's file, or the
            variables that are set.
        folder: Where Ray's logs and sockets go, of few letters: `ray` in the folder of the site.
    """
    if (address is None) == (head is None) or (site is None) != (head is not None):
        raise ValueError(
            "a site's node takes the site's file and --address host:port, the coordinator's takes --head PORT and --folder"
        )
    site_file = None if site is None else SiteFile.read(site)
    if ray is None and site is not None and (site.parent / "ray").is_dir():
        ray = site.parent / "ray"
    if ray is not None:
        os.environ.update(ray_security.environment(ray))
    ray_security.preflight()
    if site_file is not None and site is not None:
        os.environ[VARIABLE] = str(site.absolute())
        folder = folder or (None if site_file.folder is None else site_file.folder / "ray")
    if folder is None:
        raise ValueError(
            "where should Ray's logs and sockets go? name a --folder, which is made for its owner alone"
        )
    home = folder.absolute()
    if len(str(home / "t")) > _LONGEST:
        raise ValueError(
            f"{home} is too long for Ray, whose sockets are in it: --folder with at most {_LONGEST - 2} letters"
        )
    if make_folder(home).stat().st_mode & 0o077:  # Ray makes folders in it that all may write to
        raise ValueError(
            f"other users can enter {home}, and Ray's logs and sockets are open to whoever can: chmod 700 {home}, or another"
        )
    settings: dict[str, Any] = {
        "head": head is not None,
        "temp_dir": str(home / "t"),
        "ip": ip or _own_ip(address),
        "port": head,
        "address": _by_number(address),
    }
    if (
        address is not None
        and (wrong := ray_security.greeting(address, Files.named_by(os.environ))) is not None
    ):
        raise ValueError(wrong)
    if site_file is not None:
        settings |= {"name": site_file.name, "resources": dict(site_file.resources)}
    if not ray_node.run(settings, threading.Event()):
        raise RuntimeError(f"Ray died: see the logs in {home}/t/session_latest/logs")


def _own_ip(address: str | None) -> str:
    """The address by which this machine would talk to that one; for a head, to any other."""
    host, port = (
        ("192.0.2.1", 9) if address is None else (address.rpartition(":")[0], int(address.rpartition(":")[2]))
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect((host, port))  # this sends nothing
        return str(one.getsockname()[0])


def _by_number(address: str | None) -> str | None:
    """The address with the host as a number, as Ray has it."""
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    return f"{socket.gethostbyname(host)}:{port}"
