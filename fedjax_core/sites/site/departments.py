"""A site whose departments are clients of the round: each trains by itself in lanes, and one mean of all
their reports leaves the site.

    rows ─load.divided─► charite/icu, charite/ward ─lanes: begin, step, finish, encode, expand─► mean, its weight, how many ─► coordinator

The stages of the uplink act on each department's report, as on any client's: each is clipped by itself. So
what leaves is expanded already, and the coordinator runs `merged` of the round, whose uplink only has its
`finish` left. The result is that of a simulator in which every department of every site is a client, named as
here: a department's draws come of its name, "site/department".

Under secure aggregation what is added up are their reports in whole numbers, so that the sum that the
coordinator reads is to the last bit that of all departments of all sites; the site puts one mask on its own
part of it.

All departments count, or nothing leaves: a model that only few of them can be trained from would single those
out. Which train side by side goes by their sizes and the model's alone, and nothing is measured, as a site
that starts again must do the same to the last bit.

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

_OF_A_ROUND = ("refused", "clients", "examples")  # metrics of the lanes' own, which are said otherwise


class Departments:
    """Trains every one of `clients`, and gathers what they report."""

    def __init__(self, composed: Round, clients: Clients, plan: Plan) -> None:
        self.clients = clients
        largest_first = np.argsort(-clients.sizes, kind="stable")[: np.count_nonzero(clients.sizes)]
        lanes = min(tune.guess(composed), len(largest_first))
        # Of one size, so that lanes end together; and between two groups the site tells that it goes on, or stops where
        # it has to. 40 departments, one by one as whole sites train and so: logistic 60x10, 7,913 examples, 11.7 and
        # 5.9 ms in 40 lanes; MLP 784-200-200-10, 2,024 examples, 33 and 32 ms in 8 (batches of 10, 2-core x86).
        self._groups = np.split(largest_first, range(lanes, len(largest_first), lanes))
        self._steps = plan.steps_of(clients.sizes)
        self._gathers = _usual(partial_round(composed, masked=True), lanes)
        self._lanes = Simulator(self._gathers, clients, lanes=lanes, **plan.settings)

    def visit(
        self, message: Message, draws: Draws, watch: Callable[[int], None] | None = None
    ) -> ClientUpdate:
        """The mean of the reports to this message, its weight, and sums of metrics; `draws` are of any client
        in this round.

        `watch` is told after each group of departments how many steps are done, and may raise to stop. What
        comes is `fine` where every department's report could be used.
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
        """How many have examples."""
        return sum(map(len, self._groups))


def _usual(gathers: Round, lanes: int) -> Round:
    """The round with its step in the form that is usual in so many lanes."""
    (exchange,) = gathers.algorithm.exchanges
    client = exchange.client._replace(step=rewrite(exchange.client.step, lanes, measure=False))
    return gathers._replace(
        algorithm=gathers.algorithm._replace(exchanges=(exchange._replace(client=client),))
    )
