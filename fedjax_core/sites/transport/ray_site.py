"""`SiteActor`: a site as a Ray actor, with the file and the code of its own machine.

It gives nothing but `bytes` to the other end: signed envelopes, its public key, a count of steps.
"""

import contextlib
import gc
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray._private import worker as ray_worker

from fedjax_core.files import make_folder, opener
from fedjax_core.sites.audit import Log
from fedjax_core.sites.own_file import NotOwn, check, find
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.policy.budget import confine
from fedjax_core.sites.refusal import listed, printable
from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.site_file import SiteFile, load_key
from fedjax_core.sites.study import Study
from fedjax_core.sites.wire.identity import PublicKey

_NOTED = "errors.log in its folder says more"


class Handed(NamedTuple):
    """The arguments for sites on a Ray that this process started, where everything is the user's own."""

    site_file: SiteFile
    study: Study | None
    coordinator: str


class SiteActor:
    """A `Site` in a process of its own. It raises nothing, as an exception's text could contain data.

    Each method returns `bytes`, which is all that the other end reads.
    """

    def __init__(self, name: str, copy: Mapping[str, str], handed: Handed | None = None) -> None:
        """Opens the site of this name from its own file on this machine, checked against the coordinator's
        `copy`; or the one `handed` over."""
        self._site: Site | None = None
        site_file = None
        try:
            if handed is None:
                _own_code_alone()
                site_file = find(name)
                _only_here(site_file, copy)
            else:
                site_file = handed.site_file
            if site_file.policy is not None:
                confine(Policy.read(site_file.policy).caps)
            self._site = Site(
                site_file,
                *((None, None) if handed is None else (handed.study, PublicKey.parse(handed.coordinator))),
            )
            self._site.__enter__()
            self._key = self._site.context.key.public.text
            gc.collect()
            # Everything here now stays: collecting garbage among JAX and the data again and again would take a
            # twentieth of a short round.
            gc.freeze()
        except Exception as error:
            self._site, self._key = (
                None,
                str(error) if isinstance(error, NotOwn) else f"{type(error).__name__}; {_NOTED}",
            )
            _note(None if site_file is None else site_file.folder, error)

    def key(self) -> bytes:
        """The site's public key, or why there is none."""
        return self._key.encode()

    def handle(self, request: Any) -> bytes:
        """The site's reply; an empty one from a site that could not start."""
        return b"" if self._site is None else bytes(self._site.handle(memoryview(request)))


class WatchedSite(SiteActor):
    """A site that reports its progress while it works."""

    @ray.method(concurrency_group="watch")
    def progress(self) -> bytes:
        """Local steps that this process has done, in digits."""
        return b"0" if self._site is None else str(self._site.context.budget.steps).encode()


def _only_here(own: SiteFile, copy: Mapping[str, str]) -> None:
    """Raises `NotOwn`, and records it in the site's audit log, if this process was to start from anything but
    the site's own file."""
    try:
        if brought := _brought():
            raise NotOwn(
                f"{own.name} was to start in a runtime environment of the coordinator's ({listed(brought)}), which brings code or settings "
                "from elsewhere: begin without one (under `uv run`, with RAY_ENABLE_UV_RUN_RUNTIME_ENV=0)"
            )
        check(own, copy)
    except NotOwn as refusal:
        if own.folder is not None:
            with Log(own.folder / "audit", load_key(own)) as log:
                log.record(
                    own.name, "refused", about={"code": refusal.code, "reason": printable(str(refusal))[:500]}
                )
        raise


def _brought() -> list[str]:
    """The settings of a Ray runtime environment in this process: variables, or code that would be imported
    here."""
    environment = ray.get_runtime_context().runtime_env if ray.is_initialized() else {}
    return sorted(str(name) for name in environment)


def _own_code_alone() -> None:
    """Makes this process import only what is installed here: Ray puts the folders of the coordinator's script
    before all others."""
    if ray.is_initialized():
        for folder in ray_worker.global_worker.core_worker.get_job_config().py_driver_sys_path:  # type: ignore[attr-defined]
            if folder in sys.path:
                sys.path.remove(folder)


def _note(folder: Path | None, error: Exception) -> None:
    """Writes why a site could not start, in full, to `errors.log`, which only its staff reads."""
    if folder is not None:
        with (
            contextlib.suppress(OSError),
            open(make_folder(folder) / "errors.log", "a", opener=opener) as file,
        ):
            file.write("".join(traceback.format_exception(error)))
