"""An algorithm, its uplink, aggregator and downlink as one `Round`: all that a backend sees.

A round is one or more exchanges. For each, every backend does the same seven things. Only where
they run differs:

    sent, state  = round.broadcast(...)      server: broadcast, then encode
    message      = round.listen(...)         client: expand
    carry        = begin; step, step, ...    client
    encoded      = round.report(...)         client: finish, then encode
    update, ok   = round.receive(...)        server: expand, and refuse what is not finite
    recovered    = round.recover(...)        clients who reported: what the server needs of those who dropped out
    state        = round.conclude(...)       server: aggregate, finish, update

`fc.compose` (composition.py) builds a Round, and checks that its pieces fit. state.py has what goes from
round to round."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import keys, tree
from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.slotted import Slotted
from fedjax_core.algorithms import base
from fedjax_core.algorithms.base import Addressed, Aggregate, Algorithm, Each, Exchange, Report, Seen, Told
from fedjax_core.constants import remembered
from fedjax_core.state import Among as Among
from fedjax_core.state import Encoded as Encoded
from fedjax_core.state import Kept as Kept
from fedjax_core.state import State as State
from fedjax_core.state import Wire as Wire
from fedjax_core.state import wire_of as wire_of
from fedjax_core.types import Array, Carry, Key, Message, Own, Params, Server, Update
from fedjax_core.uplink.base import Info, Sender, Stage, alone, chain, stage, uses


class Round(NamedTuple):
    """One algorithm with its uplink, aggregator and downlink, checked to fit. Build it with `compose`."""

    algorithm: Algorithm
    uplink: Stage
    aggregator: Aggregator
    downlink: Stage

    def __repr__(self) -> str:
        exchanges = f" in {n} exchanges" if (n := len(self.algorithm.exchanges)) > 1 else ""
        pieces = f"uplink {self.uplink.name}, aggregator {self.aggregator.name}"
        pieces += f", downlink {self.downlink.name}" if self.downlink.name != chain().name else ""
        return f"Round({self.algorithm.name}{exchanges}, {pieces})"

    def init(self, key: Key, population: int, params: Params | None = None) -> State:
        """The state before the first round, for `population` clients; from `params`, or as the task
        begins."""
        keys.check(key)
        params = self.algorithm.init_params(keys.init(key)) if params is None else params
        server = self.algorithm.init(params)
        own = base.check_own(self.algorithm.init_client(params), f"init_client of {self.algorithm.name}")
        reports = [self.report_shapes(e, server, own) for e in range(len(self.algorithm.exchanges))]
        kept = Kept(own, tuple(self._stage(e).init_client(r.update) for e, r in enumerate(reports)))
        return State(
            server=server,
            uplink=tuple(self._stage(e).init(r.update) for e, r in enumerate(reports)),
            downlink=tuple(
                self.downlink.init_client(self._message_shapes(e, server)) for e in range(len(reports))
            ),
            aggregator=tuple(
                () if self._silent(e) else self.aggregator.init(self.received(r.update))
                for e, r in enumerate(reports)
            ),
            clients=jax.tree.map(lambda x: jnp.broadcast_to(x, (population, *jnp.shape(x))), kept),
            round=jnp.int32(0),
            key=key,
        )

    def broadcast(self, e: int, state: State, clients: Array | None = None) -> tuple[Any, State]:
        """(what the server sends in an exchange, the state with what the downlink keeps now).

        `clients` [K]: the positions of the receivers, which an exchange with an `address` needs. It then
        sends an `Addressed`, in which `told` finds a client's own part.
        """
        message = self._message(e, state.server)
        key, stage = keys.broadcast(state.key, state.round, e), self.downlink
        sent, kept = stage.encode(
            stage.init(self._message_shapes(e, state.server)), state.downlink[e], message, alone(key)
        )
        if (address := self.algorithm.exchanges[e].address) is not None:
            if clients is None:
                raise ValueError(
                    f"exchange {e} of {self.algorithm.name} tells each client something of its own: give clients="
                )
            sent = Addressed(sent, address(state.server, clients))
        return sent, state._replace(downlink=(*state.downlink[:e], kept, *state.downlink[e + 1 :]))

    def listen(self, e: int, sent: Any) -> Message:
        """The message that a client reads from what was sent, in the shapes and dtypes that the algorithm
        broadcasts."""
        if isinstance(sent, (Addressed, Told)):
            return type(sent)(self.listen(e, sent[0]), sent[1])
        algorithm = self.algorithm
        shapes = self._message_shapes(
            e, jax.eval_shape(lambda key: algorithm.init(algorithm.init_params(key)), keys.shape())
        )
        return tree.like(self.downlink.expand(self.downlink.init(shapes), sent, shapes), shapes)

    def told(self, e: int, state: State) -> Message:
        """The message of exchange `e` as a client reads it; the downlink's state is not advanced."""
        return base.told(self.listen(e, self.broadcast(e, state, jnp.zeros(1, jnp.int32))[0]), 0)

    def report_shapes(self, e: int, server: Server, own: Own) -> Report:
        """The shapes of what a client reports in exchange `e`, before any stage."""

        def visit(server: Server, own: Own, key: Key) -> Report:
            client, message = (
                self.algorithm.exchanges[e].client,
                base.message_of(self.algorithm.exchanges[e], server),
            )
            report = client.finish(
                message, client.begin(message, own, key), Seen(jnp.float32(1), jnp.float32(1))
            )
            return base.check_report(report, f"the finish of exchange {e} of {self.algorithm.name}")

        return jax.eval_shape(visit, server, own, keys.shape())

    def received(self, update: Update) -> Update:
        """The shapes in which updates of these shapes reach the aggregator: after the uplink, in 32 bits at
        least."""
        slot: Any = jax.ShapeDtypeStruct((), jnp.int32)

        def pass_on(update: Update, key: Key) -> Update:
            state, own = self.uplink.init(update), self.uplink.init_client(update)
            return tree.wide(
                self.uplink.expand(
                    state, self.uplink.encode(state, own, update, alone(key))[0], tree.shapes(update)
                )
            )

        received = jax.eval_shape(pass_on, update, keys.shape())
        return Slotted(received, slot) if self.slots > 1 else received

    def sender(self, e: int, key: Key, round: Array, among: Among, place: Array) -> Sender:
        """The `Sender` of the client at this place in a simulation, where the run's key gives all other
        keys."""
        address = among.address[place]
        client = keys.client(key, round, address)
        return Sender(
            key=keys.encode(client, e),
            shared=keys.shared(key, round, e),
            secret=keys.secret(client, e),
            pairs=jax.vmap(lambda other: keys.pair(key, round, e, address, other))(among.address),
            place=place,
            here=among.here,
            weight=jnp.float32(0),
        )

    def uses(self, e: int) -> frozenset[str]:
        """The fields of a `Sender` that the uplink of exchange `e` uses."""
        return frozenset() if self._silent(e) else uses(self.uplink, _update_shapes(self, e))

    def report(
        self, e: int, message: Message, uplink: Any, kept: Kept, carry: Carry, seen: Seen, sender: Sender
    ) -> Encoded:
        """The client's report of an exchange: `finish`, then encode."""
        report = self.algorithm.exchanges[e].client.finish(message, carry, seen)
        weight = jnp.asarray(report.weight, jnp.float32)
        sent, uplink_state = self._stage(e).encode(
            uplink, kept.uplink[e], report.update, sender._replace(weight=weight)
        )
        kept = Kept(report.own, (*kept.uplink[:e], uplink_state, *kept.uplink[e + 1 :]))
        slot = jnp.asarray(report.slot, jnp.int32) if self._slotted(e) else ()
        return Encoded(sent, weight, kept, report.stats, report.metrics, slot)

    def receive(self, e: int, uplink: Any, sent: Any, weight: Array) -> tuple[Update, Array]:
        """(update, whether it may be used), as the server reads one report. Numbers that are not finite never
        spread.

        `sent` is an `Encoded.wire`. Where the exchange has slots, the update is a `Slotted`.

        The update has 32 bits at least, whatever the model has: sums of reports in 16 bits would lose most of
        them.
        """
        sent, _, slot = wire_of(sent)
        update = tree.wide(self._stage(e).expand(uplink, sent, _update_shapes(self, e)))
        usable = tree.finite(update) & tree.finite(sent) & jnp.isfinite(weight) & (weight >= 0)
        if not self._slotted(e):
            return update, usable
        return Slotted(update, slot), usable & (slot >= 0) & (slot < self.slots)

    def recover(self, e: int, state: State, kept: Kept, among: Among, reported: Array) -> Any:
        """What clients reveal in a simulation once it is known whose reports count: [K, ...], with zeros for
        all others.

        `kept` [K, ...] is what they keep after the exchange. () where the uplink asks for nothing.
        """
        recover = self._stage(e).recover
        if recover is None:
            return ()

        def one(place: Array, own: Any) -> Any:
            return recover(
                state.uplink[e], own, self.sender(e, state.key, state.round, among, place), reported
            )

        revealed = jax.vmap(one)(jnp.arange(len(reported), dtype=jnp.int32), kept.uplink[e])
        return tree.where(reported, revealed, tree.zeros_like(revealed))

    def conclude(
        self,
        e: int,
        state: State,
        acc: Any,
        weight: Array,
        clients: Array,
        here: Array,
        reported: Array,
        recovered: Any = (),
        each: Each | None = None,
        secret: Key | None = None,
    ) -> State:
        """The state after an exchange; `acc` has the reports of the clients `reported` [K] among those `here`
        [K].

        `each` has their stats, where they have some. `secret` is the key of noise that the server adds; by
        default it is derived from the run's key, which is for simulations.

        Where nobody reported the server stays as it is, its optimiser's momentum too, unless a stage makes
        something of nothing (noise, which must always be there).
        """
        update = self.algorithm.exchanges[e].update
        if update is None:
            return state
        key = keys.server(state.key, state.round, e)
        met, memory = self.value(e, state, acc)
        secret = keys.server_secret(state.key, state.round, e) if secret is None else secret
        info = Info(
            weight, clients, keys.shared(state.key, state.round, e), secret, here, reported, recovered
        )
        value, uplink_state = self.finish(e, state.uplink[e], met, info, key)
        draws = keys.update(state.key, state.round, e)
        server = update(state.server, Aggregate(value, weight, clients, draws, each))
        after = state._replace(
            server=server,
            uplink=(*state.uplink[:e], uplink_state, *state.uplink[e + 1 :]),
            aggregator=(*state.aggregator[:e], memory, *state.aggregator[e + 1 :]),
        )
        moves = (clients > 0) | ((tree.norm(value) > 0) & tree.finite(value))
        moved = [
            jax.tree.map(partial(jnp.where, moves), getattr(after, part), getattr(state, part))
            for part in _CONCLUDED
        ]
        return state._replace(**dict(zip(_CONCLUDED, moved, strict=True)))

    def value(self, e: int, state: State, acc: Any) -> tuple[Any, Any]:
        """(the aggregator's value of all reports, before the stages' `finish`; what the aggregator keeps
        now)."""
        return self.aggregator.value(acc, state.aggregator[e], keys.aggregate(state.key, state.round, e))

    def finish(self, e: int, uplink: Any, met: Any, info: Info, key: Key) -> tuple[Update, Any]:
        """Runs the stages' `finish` on the aggregator's value: (the value after it, what the server keeps for
        the stages now)."""
        stage = self._stage(e)
        if not self._slotted(e):
            return stage.finish(uplink, met, info._replace(shapes=_update_shapes(self, e)), key)

        # stages keep nothing at the server here, as `compose` ensures
        def one(slot: Array, met: Any) -> Update:
            secret = jax.random.fold_in(info.secret, slot)
            return stage.finish(uplink, met, info._replace(secret=secret), jax.random.fold_in(key, slot))[0]

        return jax.vmap(one)(jnp.arange(self.slots, dtype=jnp.int32), met), uplink

    @property
    def slots(self) -> int:
        """The number of values that reports are combined into: 1, or the same number in every exchange with
        reports."""
        return max(
            (exchange.slots for exchange in self.algorithm.exchanges if exchange.update is not None),
            default=1,
        )

    def _slotted(self, e: int) -> bool:
        return self.slots > 1 and not self._silent(e)

    def _message(self, e: int, server: Server) -> Message:
        return self.algorithm.exchanges[e].broadcast(server)

    def _message_shapes(self, e: int, server: Server) -> Message:
        return jax.eval_shape(lambda server: self._message(e, server), server)

    def _silent(self, e: int) -> bool:
        return self.algorithm.exchanges[e].update is None

    def _stage(self, e: int) -> Stage:
        """The uplink of exchange `e`; an empty one where no report leaves."""
        return _SILENT if self._silent(e) else self.uplink


_CONCLUDED = "server", "uplink", "aggregator"
"""The fields of a state that the conclusion of an exchange changes."""
_SILENT = stage("silent", encode=lambda state, own, update, sender: ((), own))


def reports_of(composed: Round) -> list[Report]:
    """The shapes of what a client reports in each exchange, before any stage."""
    state = state_shapes(composed)
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.clients.own)
    return [composed.report_shapes(e, state.server, own) for e in range(len(composed.algorithm.exchanges))]


@remembered(maxsize=64)
def state_shapes(composed: Round) -> State:
    """The shapes of a state of one client, traced once for each round, as that may take 0.2 s (2-core
    x86)."""
    return jax.eval_shape(lambda: composed.init(jax.random.key(0), 1))


@remembered(maxsize=64)
def _update_shapes(composed: Round, e: int) -> Update:
    """The shapes of the update of exchange `e`, traced once, as every reader of a report needs them."""
    algorithm, params = composed.algorithm, jax.eval_shape(composed.algorithm.init_params, keys.shape())
    own = jax.eval_shape(algorithm.init_client, params)
    return composed.report_shapes(e, jax.eval_shape(algorithm.init, params), own).update


def nobody(exchange: Exchange, stats: Mapping[str, Any], cohort: int, population: int) -> Each | None:
    """An `Each` of a cohort of empty places, for stats of these shapes; None where the server reads nothing
    of single clients."""
    if not stats and (exchange.reports != "all" or exchange.update is None):
        return None
    rows = {name: jnp.zeros((cohort, *x.shape), x.dtype) for name, x in stats.items()}
    return Each(rows, jnp.zeros(cohort, jnp.float32), jnp.full(cohort, population, jnp.int32))
