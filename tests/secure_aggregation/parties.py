"""Sites and a coordinator of a round of secure aggregation in one process, of whom any may drop out at any
stage."""

from collections.abc import Collection, Mapping

import numpy as np

from fedjax_core.secure_aggregation.client import Client
from fedjax_core.secure_aggregation.messages import Round, Terms
from fedjax_core.secure_aggregation.server import Server
from fedjax_core.secure_aggregation.spent import Spent
from fedjax_core.sites.wire.identity import SiteKey

STAGES = ("advertise", "share", "mask", "confirm", "reveal")
NAMES = [f"site{i:03}" for i in range(128)]
KEYS = {name: SiteKey.make(name) for name in NAMES}


def fits(name: str, purpose: str, data: bytes, signature: bytes) -> bool:
    """By the keys that everybody had beforehand."""
    return name in KEYS and KEYS[name].public.fits(purpose, data, signature)


def terms(length: int = 8, share=(2, 3), **round) -> Terms:
    return Terms(Round(**{"run": "heart", "round": 3, **round}), length, share)


def party(names, terms, minimum=2):
    """({name: client}, server)."""
    return {n: Client(n, terms, KEYS[n].sign, fits, Spent(), minimum) for n in names}, Server(terms, fits)


def vectors(names, length: int = 8, seed: int = 0):
    """{name: a vector}, of any words."""
    rng = np.random.default_rng(seed)
    return {n: rng.integers(0, 2**32, length, np.uint32) for n in names}


def aggregate(clients, server, given: Mapping[str, np.ndarray], last: Mapping[str, int] | None = None):
    """(sum, who is in it) of a round; `last` is {name: the number of stages that it answers}, all five of
    whom it does not name."""

    def there(stage: int, names: Collection[str]):
        return [n for n in names if (last or {}).get(n, 5) > stage]

    roster = server.roster(clients[n].advertise() for n in there(0, clients))
    boxes = server.route(clients[n].share(roster) for n in there(1, [s.name for s in roster.sites]))
    for n in there(2, boxes):
        server.add(clients[n].mask(boxes[n], given[n]))
    survivors = server.survivors()
    wanted = server.wanted(clients[n].confirm(survivors) for n in there(3, survivors.names))
    return server.total(clients[n].reveal(wanted[n]) for n in there(4, wanted)), survivors.names


def plain(given: Mapping[str, np.ndarray], names: Collection[str]) -> np.ndarray:
    """The sum by Python's own whole numbers."""
    columns = zip(*(given[n].tolist() for n in names), strict=True)
    return np.array([sum(column) % 2**32 for column in columns], np.uint32)
