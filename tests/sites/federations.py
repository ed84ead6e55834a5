"""A federation in this process over the zoo's clients, one a site, and the simulator over the same."""

import contextlib

import jax
import numpy as np
from msgspec.structs import replace

from fedjax_core import Clients, Simulator, privacy, uplink
from fedjax_core.round import Kept
from fedjax_core.sites.federation import Federation
from fedjax_core.sites.protocol import request
from fedjax_core.sites.protocol.request import Draws
from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.transport.in_process import InProcess
from fedjax_core.sites.wire.envelope import decode, encode
from fedjax_core.sites.wire.identity import Roster, SiteKey
from tests.sites.faulty import Faulty, changed
from tests.zoo import ZOO, clients

NAMES = ("charite", "mayo", "oslo", "kyoto")
BATCH, EPOCHS = 4, 2
COORDINATOR = SiteKey.make("coordinator")


def saying(clip, noise):
    """A stage that promises this, and does nothing."""
    usual = privacy.local(clip=clip, noise=noise, rounds=9, open_counts=True, open_metrics=True)
    return uplink.stage("saying", promises=usual.uplink.promises)


def columns(kind: str = "classes"):
    """The examples of four institutions: 23, 5, 1 and 4."""
    data = clients(kind)
    return [data[i] for i in (3, 0, 1, 4)]


def drawing(key, round, address):
    """The draws of the site at this address in this round of a run with this key."""
    words = np.asarray(jax.random.key_data(key))
    return Draws(words, np.int32(round), address, secret=words + 1, kind=str(jax.random.key_impl(key)))


def with_the_secrets_of_a_simulation(monkeypatch):
    """Has sites draw the noise of their steps as lanes do, by the run's key: a site's own secret is no one
    else's."""
    of_a_site = request.draws

    def draws(*arguments, **more):
        made = of_a_site(*arguments, **more)
        return made._replace(secret=made.words)

    monkeypatch.setattr(request, "draws", draws)


def site_files(kind="classes", folder=None):
    return [
        SiteFile(name=name, data=data, folder=None if folder is None else folder / name)
        for name, data in zip(NAMES, columns(kind), strict=True)
    ]


def simulator(composed, kind="classes", **plan):
    everyone = Clients.from_list(columns(kind), ids=list(NAMES))
    return Simulator(composed, everyone, lanes=2, **{"batch_size": BATCH, "epochs": EPOCHS, **plan})


def lying(site, raw, lie):
    """The site's reply with what `lie(name, envelope)` changes of it, (fields, tensors or None), signed with
    the site's own key."""
    said = decode(raw, Roster({site.name: site.context.key.public}), recipient=COORDINATOR.name)
    if (change := lie(site.name, said)) is None:
        return raw
    fields, tensors = change
    header = replace(said.header, fields=said.header.fields | fields, key="", size=0, digest="")
    return encode(header, said.tensors if tensors is None else tensors, site.context.key)


@contextlib.contextmanager
def federation(composed, kind="classes", *, fault=None, lie=None, files=None, folder=None, **settings):
    """(the federation, its sites, its transport); with a `fault`, of every message between them, or a `lie`
    in every reply."""
    files = site_files(kind, folder) if files is None else files
    said = {name: settings[name] for name in ("epsilon", "prepare", "departments") if name in settings}
    study = Study(composed, BATCH, EPOCHS, **said)
    with contextlib.ExitStack() as stack:
        sites = [stack.enter_context(Site(one, study, COORDINATOR.public)) for one in files]
        if lie is not None:
            by_name = {site.name: site for site in sites}

            def fault(send, site, request, n):
                return changed(send(site, request), lambda raw: lying(by_name[site], raw, lie))

        transport = Faulty(InProcess(sites), fault or (lambda send, site, request, n: send(site, request)))
        roster = Roster(
            {site.name: site.context.key.public for site in sites}, examples=settings.pop("agreed", {})
        )
        home = None if folder is None else folder / "coordinator"
        fed = Federation(
            composed,
            files,
            batch_size=BATCH,
            epochs=EPOCHS,
            transport=transport,
            roster=roster,
            key=COORDINATOR,
            folder=home,
            **settings,
        )
        stack.enter_context(fed)
        yield fed, sites, transport


def begin_anew(sites, transport, at):
    """The site at this position is killed, and started again over its folder."""
    sites[at] = anew(sites[at])
    transport.inner.sites[sites[at].name] = sites[at]


def anew(site):
    """The same site after it was killed: another over its folder."""
    site.__exit__()
    return Site(site.context.site_file, site.context.study, COORDINATOR.public).__enter__()


def whole(fed, sites, state):
    """The state with what sites keep in the place of its versions: what the simulator's state is."""
    versions = np.asarray(state.clients.version)
    first = fed._requests.first
    rows = [
        site.context.kept(fed.run_name, int(v)) if v else first
        for site, v in zip(sites, versions, strict=True)
    ]
    return state._replace(clients=Kept(*jax.tree.map(lambda *x: np.stack(x), *rows)))


__all__ = ["ZOO"]
