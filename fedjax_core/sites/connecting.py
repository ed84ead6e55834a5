"""Connects a federation to its sites, in threads here or over Ray, and loads the coordinator's key."""

import contextlib
from pathlib import Path
from typing import Any

from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.transport.in_process import InProcess
from fedjax_core.sites.wire.envelope import COORDINATOR
from fedjax_core.sites.wire.identity import PublicKey, SiteKey
from fedjax_core.sites.wire.transport import Transport


def connect(
    files: list[SiteFile], study: Study, coordinator: PublicKey, transport: Any, *, address: str | None, insecure_local: bool,
    watched: bool, closing: contextlib.ExitStack,
) -> tuple[Transport, dict[str, PublicKey]]:  # fmt: skip
    """(the transport to these sites, the keys that they report); resources to release go to `closing`."""
    if transport == "in-process":
        sites = [closing.enter_context(_site(one, study, coordinator)) for one in files]
        return InProcess(sites), {site.name: site.context.key.public for site in sites}
    if transport == "ray":
        from fedjax_core.sites.transport.ray_actors import RayTransport

        ray_transport = RayTransport(
            files, study, coordinator, address=address, insecure_local=insecure_local, watched=watched
        )
        return ray_transport, ray_transport.keys
    return transport, {}


def counted(transport: Any) -> dict[str, int]:
    """{site: number of examples}, counted here, as this process opened the data itself."""
    return {name: site.context.data.raw.examples for name, site in transport.sites.items()}


def _site(site_file: SiteFile, study: Study, coordinator: PublicKey) -> Site:
    """The site; an error while it opens its data gets a note with its name."""
    try:
        return Site(site_file, study, coordinator)
    except Exception as error:
        error.add_note(f"It is the site {site_file.name} that could not start.")
        raise


def own_key(folder: Path | None) -> SiteKey:
    """The coordinator's key from the folder, or a new one if there is none."""
    if folder is None:
        return SiteKey.make(COORDINATOR)
    path = folder / f"{COORDINATOR}.key"
    if not path.exists():
        SiteKey.make(COORDINATOR).save(folder)
    return SiteKey.load(path)
