"""`Departments`: trains each department of a site as a client, and forms the one mean that leaves.

    rows ─load.divided─► charite/icu, charite/ward ─lanes: begin, step, ..., expand─► mean, weight, count

The stages of the uplink act on each department's report, as on any client's: each is clipped by itself. So
the mean that leaves is expanded already, and the coordinator runs `merged` of the round, whose uplink only
has its `finish` left. The result equals that of a simulator in which every department of every site is a
client, named as here: a department's draws derive from its name, "site/department".

Under secure aggregation the reports are added as integers, so the sum that the coordinator reads is, to the
last bit, that of all departments of all sites; the site masks its own part once.

All departments count, or nothing leaves: a model that can be trained at only a few of them would single those
out. Which departments train side by side depends only on their sizes and the model's, and nothing is
measured, as a restarted site must do the same to the last bit.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_core import tree
from fedjax_core.data.batches import Plan
from fedjax_core.data.clients import Clients
from fedjax_core.lanes import tune
from fedjax_core.lanes.simulator import Simulator
from fedjax_core.partial import begin, combine, partial_round
from fedjax_core.round import Kept, Round
from fedjax_core.sites.protocol.request import Draws
from fedjax_core.sites.site.client_update import ClientUpdate
from fedjax_core.types import Message
from fedjax_core.xla.rewrite import rewrite

_OF_A_ROUND = ("refused", "clients", "examples")  # the lanes' own metrics, which are reported otherwise


class Departments:
    """Trains every one of `clients`, and aggregates their reports."""

    def __init__(self, composed: Round, clients: Clients, plan: Plan) -> None:
        self.clients = clients
        largest_first = np.argsort(-clients.sizes, kind="stable")[: np.count_nonzero(clients.sizes)]
        lanes = min(tune.guess(composed), len(largest_first))
        # Groups of similar size, so that lanes end together; between two groups the site reports progress, or stops.
        # 40 departments one by one, as whole sites train, and in lanes: logistic 60x10, 7,913 examples, 11.7 and
        # 5.9 ms in 40 lanes; MLP 784-200-200-10, 2,024 examples, 33 and 32 ms in 8 (batches of 10, 2-core x86).
        self._groups = np.split(largest_first, range(lanes, len(largest_first), lanes))
        self._steps = plan.steps_of(clients.sizes)
        self._gathers = _usual(partial_round(composed, masked=True), lanes)
        self._lanes = Simulator(self._gathers, clients, lanes=lanes, **plan.settings)

    def visit(
        self, message: Message, draws: Draws, watch: Callable[[int], None] | None = None
    ) -> ClientUpdate:
        """The departments' mean report, its weight, and sums of metrics; `draws`: of any client in this
        round.

        `watch` gets the number of steps done after each group of departments, and may raise to stop. The
        result is `fine` if every department's report is usable.
        """
        state = begin(self._gathers, draws.run_key(), int(draws.round), message)
        so_far, metrics, done = None, dict[str, Any](), 0
        for group in self._groups:
            result, new = self._lanes.run(state, group)
            so_far = (
                result
                if so_far is None
                else combine(self._gathers, state, [(so_far.server, 1.0), (result.server, 1.0)])
            )
            metrics = tree.add(metrics, new) if metrics else new
            if watch is not None:
                jax.block_until_ready(so_far)
                done += int(self._steps[group].sum())
                watch(done)
        assert so_far is not None
        mean: Any = so_far.server
        fine = (mean.clients == len(self)) & tree.finite(mean.value)
        reported = {name: m for name, m in metrics.items() if name not in _OF_A_ROUND}
        return ClientUpdate(mean.value, mean.weight, Kept((), ()), fine, {}, reported)

    def __len__(self) -> int:
        """The number of departments with examples."""
        return sum(map(len, self._groups))


def _usual(gathers: Round, lanes: int) -> Round:
    """The round with its step in the default form for so many lanes."""
    (exchange,) = gathers.algorithm.exchanges
    client = exchange.client._replace(step=rewrite(exchange.client.step, lanes, measure=False))
    return gathers._replace(
        algorithm=gathers.algorithm._replace(exchanges=(exchange._replace(client=client),))
    )
