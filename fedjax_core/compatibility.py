"""Checks that the pieces of a round go together, by what they declare; shapes are not looked at.

an Exchange says       how its reports may meet (`reports`), in how many `slots`, how much `work` it is
an Aggregator says     whether it is `linear`, and whether it `keeps` and `gives` every report
a Stage says           whether it `hides` every report but their sum
"""

from typing import Any

from fedjax_core.aggregators.base import Aggregator
from fedjax_core.algorithms.base import Algorithm, Client, Exchange
from fedjax_core.uplink.base import Stage
from fedjax_core.work import Work


def reporting(algorithm: Algorithm) -> list[Exchange]:
    """The exchanges in which clients report; empty where `exchanges` is no tuple of exchanges."""
    exchanges: Any = algorithm.exchanges
    usable = exchanges if isinstance(exchanges, tuple) and not isinstance(exchanges, Exchange) else ()
    return [exchange for exchange in usable if isinstance(exchange, Exchange) and exchange.update is not None]


def check_exchanges(algorithm: Algorithm) -> None:
    """Raises where the algorithm's exchanges are not what an engine can run."""
    exchanges: Any = algorithm.exchanges
    if not isinstance(exchanges, tuple) or isinstance(exchanges, Exchange) or not exchanges:
        got = "an empty tuple" if exchanges == () else f"a single {type(exchanges).__name__}"
        raise TypeError(
            f"exchanges= of an algorithm is a tuple with one Exchange or more, got {got}: write exchanges=(exchange,)"
        )
    for e, exchange in enumerate(exchanges):
        if not isinstance(exchange, Exchange) or not isinstance(exchange.client, Client):
            what = exchange if not isinstance(exchange, Exchange) else exchange.client
            wanted = "an Exchange" if not isinstance(exchange, Exchange) else "a Client as its client="
            raise TypeError(
                f"exchange {e} of the algorithm should be {wanted}, got {type(what).__name__}: see fedjax_core.algorithms.base"
            )
        if not isinstance(exchange.work, Work):
            raise TypeError(
                f"exchange {e} has work={exchange.work!r}, and should have a Work of fedjax_core.algorithms: "
                "TRAIN goes by the run's epochs or steps (it was 'train'), ONCE takes each example once (it "
                "was 'once'), Work(steps=0) looks at none"
            )


def check_meeting(algorithm: Algorithm, uplink: Stage, aggregator: Aggregator) -> None:
    """Raises where this aggregator or this uplink cannot combine reports as the algorithm needs it."""
    for e, exchange in enumerate(algorithm.exchanges):
        what = f"what clients report in exchange {e} of {algorithm.name}"
        if exchange.reports not in ("any", "mean", "all"):
            raise ValueError(
                f"exchange {e} has reports={exchange.reports!r}, which is 'any', 'mean' or 'all'"
            )
        if type(exchange.slots) is not int or exchange.slots < 1:
            raise ValueError(
                f"exchange {e} has slots={exchange.slots!r}, which is a whole number of 1 or more"
            )
        if exchange.update is None:
            continue
        if exchange.reports == "mean" and not aggregator.linear:
            raise ValueError(
                f"{aggregator.name}() cannot take {what}, which has a meaning only as a weighted mean (each client "
                "fills in one part of several). Use aggregator=fc.aggregators.mean()."
            )
        if exchange.reports == "all" and aggregator.gives != "reports":
            raise ValueError(
                f"{aggregator.name}() makes one of all reports, and the server of {algorithm.name} needs every one of "
                "them. Use aggregator=fc.aggregators.stack(), or leave aggregator= out."
            )
        if exchange.reports != "all" and aggregator.gives == "reports":
            raise ValueError(
                f"{aggregator.name}() leaves all reports as they are, and the server of {algorithm.name} takes one "
                "value of them. Use aggregator=fc.aggregators.mean(), or an Exchange(reports='all')."
            )
    slots = {exchange.slots for exchange in reporting(algorithm)}
    if len(slots) > 1:
        raise ValueError(
            f"{algorithm.name} has exchanges with {' and '.join(map(str, sorted(slots)))} slots, and one aggregator for "
            "all: give those in which clients report the same number"
        )
    if uplink.hides and aggregator.keeps == "reports":
        raise ValueError(
            f"{aggregator.name}() needs every client's update, but {uplink.name!r} only reveals their sum. "
            "Use aggregator=fc.aggregators.total(), or leave that stage out."
        )
    if max(slots, default=1) == 1:
        return
    if uplink.hides:
        raise ValueError(
            f"{algorithm.name} has each client name the slot of its report, and {uplink.name!r} reveals only the sum "
            "over all clients, not that of each slot: leave that stage out"
        )
    if aggregator.gives == "reports":
        raise ValueError(
            f"{algorithm.name} has slots, of which {aggregator.name}() would make no values: leave one out"
        )
