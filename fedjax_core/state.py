"""The values that go from round to round or within one: the `State`, client state, and a client's report on
its way.

A `State` is one pytree: the carry of a scan, the checkpoint, and what tests compare. round.py has the
functions from one to the next.

>>> class Server(NamedTuple):
...     params: dict[str, Array]
>>> State(Server({"w": jnp.zeros(3)}), (), (), (), Kept((), ()), jnp.int32(2), jax.random.key(0))
State(round=2, a model of 3 numbers in 1 leaves)
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core.metrics import Mean, Sum
from fedjax_core.types import Array, Key, Own, Params, Server


class Kept(NamedTuple):
    """The state of all clients between rounds; every leaf is [N, ...]."""

    own: Own  # for the algorithm
    uplink: tuple[Any, ...]  # for the stages, one entry an exchange


class Among(NamedTuple):
    """The cohort of an exchange, as its clients know it: K places, some of which may be empty."""

    address: Array  # [K, 2] uint32: each client's address, from which its draws are made
    here: Array  # [K] bool: the places of those who take part


class State(NamedTuple):
    """All that goes from round to round: the carry of a scan, the checkpoint, and what tests compare."""

    server: Server
    uplink: tuple[Any, ...]  # the server's half of the stages, one entry an exchange
    # what the server keeps for the stages that encode its messages, one entry an exchange
    downlink: tuple[Any, ...]
    aggregator: tuple[Any, ...]  # what the server keeps for the aggregator, one entry an exchange
    clients: Kept
    round: Array  # int32 scalar: rounds done
    key: Key  # never changes: every draw has an address under it

    @property
    def params(self) -> Params:
        """The global model."""
        return self.server.params

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(getattr(self.server, "params", ()))
        numbers = sum(math.prod(jnp.shape(leaf)) for leaf in leaves)
        return f"State(round={self.round}, a model of {numbers:,} numbers in {len(leaves)} leaves)"


class Encoded(NamedTuple):
    """A client's report after the stages' first half."""

    sent: Any  # what is sent in place of the update
    weight: Array
    kept: Kept  # what the client keeps
    stats: Mapping[str, Array]
    metrics: Mapping[str, Mean | Sum]
    slot: Array | tuple[()]  # () where the exchange has one slot

    @property
    def wire(self) -> Any:
        """The parts of it that a site sends, except for the weight: the update alone if there are no stats
        and slots."""
        bare = not self.stats and isinstance(self.slot, tuple)
        return self.sent if bare else Wire(self.sent, dict(self.stats), self.slot)


class Wire(NamedTuple):
    """A report with stats or a slot as a site sends it."""

    update: Any  # as the stages sent it
    stats: dict[str, Any]
    slot: Any = ()


def wire_of(sent: Any) -> Wire:
    """The parts of what a site sent."""
    return sent if isinstance(sent, Wire) else Wire(sent, {})
