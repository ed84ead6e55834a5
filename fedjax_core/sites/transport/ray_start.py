"""Joins a running, protected Ray, or starts one on this machine: on loopback, with a token."""

import contextlib
import logging
import os
import secrets
from collections.abc import Sequence
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from fedjax_core.machine import short_folder
from fedjax_core.sites.own_file import VARIABLE
from fedjax_core.sites.refusal import listed
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.transport.ray_bytes import leave_errors_unread
from fedjax_core.sites.transport.ray_security import InsecureRay, on_loopback, preflight

log = logging.getLogger("fedjax_core")

NAMESPACE = "fedjax_core"
_ONE_DOMAIN = (
    "whoever is in this Ray can run programs at every site and at the coordinator, whatever the sites' policies say: it is for those who "
    "trust each other so far (docs/sites-privacy.md, Who can do what)"
)
_TOKEN = "Is the token the cluster's (RAY_AUTH_TOKEN, or the file in RAY_AUTH_TOKEN_PATH)? Copy it anew from whoever made the certificates."


def start_ray(files: Sequence[SiteFile], address: str | None, insecure_local: bool) -> bool:
    """Joins or starts Ray; returns whether this process did, and so ends it."""
    leave_errors_unread()
    # What an actor prints might contain values of its data.
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if ray.is_initialized() or address is not None:
        preflight(insecure_local, None if ray.is_initialized() else address)
        check_nothing_is_carried(files)
        log.warning(_ONE_DOMAIN)
    if ray.is_initialized():
        return False
    if address is not None:
        loopback = address.startswith("127.")
        quiet |= {"_node_ip_address": "127.0.0.1"} if loopback else {}
        with on_loopback() if loopback else contextlib.nullcontext():
            try:
                ray.init(address=address, namespace=NAMESPACE, **quiet)
            except ConnectionError as error:  # Ray prints the reason only on standard error
                raise ConnectionError(
                    f"{error}: it answers, and does not let this process in. {_TOKEN}"
                ) from error
        return True
    if "RAY_AUTH_TOKEN" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # A former Ray of this process may have left another token.
        AuthenticationTokenLoader.instance().reset_cache()
    resources: dict[str, float] = {}
    for site_file in files:
        for name, amount in site_file.resources.items():
            resources[name] = resources.get(name, 0.0) + amount
    with on_loopback():
        ray.init(
            address="local", namespace=NAMESPACE, include_dashboard=False, _node_ip_address="127.0.0.1", num_cpus=len(files),
            resources=resources, _temp_dir=str(short_folder() / "ray"), **quiet,
        )  # fmt: skip
    lacking = (
        []
        if os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        else ["without token authentication: unset RAY_AUTH_MODE"]
    )
    lacking += (
        []
        if ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
        else ["on all networks of this machine: use another version of Ray"]
    )
    if lacking and not insecure_local:
        ray.shutdown()
        raise InsecureRay(
            f"the Ray that was started listens {' and '.join(lacking)}, or give insecure_local=True to go on so"
        )
    return True


def check_nothing_is_carried(files: Sequence[SiteFile]) -> None:
    """Raises if a site on an existing Ray was made in Python with settings that only its own file may
    have."""
    for site_file in files:
        if site_file.file is None and (carried := site_file.carried):
            raise ValueError(
                f"the site {site_file.name} is given here with {listed(carried)}, and over a Ray that runs already a site has "
                "these from its "
                f"own file alone: give SiteFile(name=, resources=) or the path of a copy that has these two, and set {VARIABLE} at the "
                "site. For a try on this machine leave out address, and let Federation start Ray"
            )
