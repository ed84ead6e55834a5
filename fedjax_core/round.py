"""`compose` joins an algorithm, what happens on the way up, and how reports meet into a `Round`: all that a backend ever sees.

A round is one or more exchanges. For each, every backend does the same seven things; only where they run differs:

    sent, state     = round.broadcast(...)                             server: broadcast, then encode
    message         = round.listen(...)                                client: expand
    carry           = begin; step, step, ...                           client
    encoded         = round.report(...)                                client: finish, then encode
    update, ok      = round.receive(...)                               server: expand, and refuse what is not finite
    recovered       = round.recover(...)                               clients who reported: what is needed of those who dropped out
    state           = round.conclude(...)                              server: aggregate, finish, update

>>> import optax
>>> from fedjax_core import aggregators, algorithms, models, uplink
>>> algorithm = algorithms.fedavg(models.linear(features=3), local=optax.sgd(0.1))
>>> composed = compose(algorithm, uplink=uplink.chain(uplink.clip(1.0), uplink.quantize(bits=8)))
>>> composed.uplink.name, composed.aggregator.name
('chain(clip, quantize)', 'mean')
"""

import math
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import keys, tree
from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.mean import mean
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Each, Exchange, Report, Seen, check_own, check_report
from fedjax_core.metrics import Mean, Sum, check_client_metrics, check_names
from fedjax_core.types import Array, Batch, Carry, Columns, Key, Message, Own, Params, Server, Update, known
from fedjax_core.uplink.base import Info, Sender, Stage, alone, chain, not_given_back, stage, uses
from fedjax_core.work import Work


class Kept(NamedTuple):
    """What clients keep between rounds; every leaf is [N, ...]."""

    own: Own  # for the algorithm
    uplink: tuple[Any, ...]  # for the stages, one entry an exchange


class Among(NamedTuple):
    """The cohort of an exchange, as its clients know it: K places, of which some may be empty."""

    address: Array  # [K, 2] uint32: each client's, of which its draws are made
    here: Array  # [K] bool: the places of those who take part


class State(NamedTuple):
    """All that crosses a round: the carry of a scan, the checkpoint, and what tests compare."""

    server: Server
    uplink: tuple[Any, ...]  # the server's half of the stages, one entry an exchange
    downlink: tuple[Any, ...]  # what the server keeps for the stages that encode its messages, one entry an exchange
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

    sent: Any  # what goes on the wire in the place of the update
    weight: Array
    kept: Kept  # what the client keeps
    stats: Mapping[str, Array]
    metrics: Mapping[str, Mean | Sum]

    @property
    def wire(self) -> Any:
        """All that a site sends of it, but for its weight: where there are no stats the update alone."""
        return Wire(self.sent, dict(self.stats)) if self.stats else self.sent


class Wire(NamedTuple):
    """A report with stats as a site sends it."""

    update: Any  # as the stages sent it
    stats: dict[str, Any]


def wire_of(sent: Any) -> Wire:
    """What a site sent, in its parts."""
    return sent if isinstance(sent, Wire) else Wire(sent, {})


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
        """The state before the first round, for `population` clients; from `params` where given, else as the task begins."""
        keys.check(key)
        params = self.algorithm.init_params(keys.init(key)) if params is None else params
        server = self.algorithm.init(params)
        own = check_own(self.algorithm.init_client(params), f"init_client of {self.algorithm.name}")
        reports = [self.report_shapes(e, server, own) for e in range(len(self.algorithm.exchanges))]
        kept = Kept(own, tuple(self._stage(e).init_client(r.update) for e, r in enumerate(reports)))
        return State(
            server=server,
            uplink=tuple(self._stage(e).init(r.update) for e, r in enumerate(reports)),
            downlink=tuple(self.downlink.init_client(self._message_shapes(e, server)) for e in range(len(reports))),
            aggregator=tuple(() if self._silent(e) else self.aggregator.init(self.received(r.update)) for e, r in enumerate(reports)),
            clients=jax.tree.map(lambda x: jnp.broadcast_to(x, (population, *jnp.shape(x))), kept),
            round=jnp.int32(0),
            key=key,
        )

    def broadcast(self, e: int, state: State) -> tuple[Any, State]:
        """The server's beginning of an exchange: (what is sent to every client, the state with what the downlink keeps now)."""
        message = self._message(e, state.server)
        key, stage = keys.broadcast(state.key, state.round, e), self.downlink
        sent, mine = stage.encode(stage.init(self._message_shapes(e, state.server)), state.downlink[e], message, alone(key))
        return sent, state._replace(downlink=(*state.downlink[:e], mine, *state.downlink[e + 1 :]))

    def listen(self, e: int, sent: Any) -> Message:
        """The client's reading of what was sent: the message, in the shapes and dtypes that the algorithm broadcasts."""
        algorithm = self.algorithm
        shapes = self._message_shapes(e, jax.eval_shape(lambda key: algorithm.init(algorithm.init_params(key)), _key()))
        return tree.like(self.downlink.expand(self.downlink.init(shapes), sent, shapes), shapes)

    def told(self, e: int, state: State) -> Message:
        """The message of exchange `e` as clients read it, for those who ask only what clients would do with it."""
        return self.listen(e, self.broadcast(e, state)[0])

    def report_shapes(self, e: int, server: Server, own: Own) -> Report:
        """The shapes of what a client reports in exchange `e`, before any stage."""

        def visit(server: Server, own: Own, key: Key) -> Report:
            client, message = self.algorithm.exchanges[e].client, self._message(e, server)
            report = client.finish(message, client.begin(message, own, key), Seen(jnp.float32(1), jnp.float32(1)))
            return check_report(report, f"the finish of exchange {e} of {self.algorithm.name}")

        return jax.eval_shape(visit, server, own, _key())

    def received(self, update: Update) -> Update:
        """The shapes of what the aggregator is given of updates of these shapes: past the uplink, and in 32 bits at least."""

        def pass_on(update: Update, key: Key) -> Update:
            state, own = self.uplink.init(update), self.uplink.init_client(update)
            return tree.wide(self.uplink.expand(state, self.uplink.encode(state, own, update, alone(key))[0], tree.shapes(update)))

        return jax.eval_shape(pass_on, update, _key())

    def sender(self, e: int, key: Key, round: Array, among: Among, place: Array) -> Sender:
        """The client at this place of the cohort, as it sends in a simulation: all of its keys come of the run's."""
        mine = among.address[place]
        client = keys.client(key, round, mine)
        return Sender(
            key=keys.encode(client, e),
            shared=keys.shared(key, round, e),
            secret=keys.secret(client, e),
            pairs=jax.vmap(lambda other: keys.pair(key, round, e, mine, other))(among.address),
            place=place,
            here=among.here,
            weight=jnp.float32(0),
        )

    def uses(self, e: int) -> frozenset[str]:
        """What the uplink of exchange `e` uses of a `Sender`."""
        return frozenset() if self._silent(e) else uses(self.uplink, _update_shapes(self, e))

    def report(self, e: int, message: Message, uplink: Any, kept: Kept, carry: Carry, seen: Seen, sender: Sender) -> Encoded:
        """The client's end of an exchange."""
        report = self.algorithm.exchanges[e].client.finish(message, carry, seen)
        weight = jnp.asarray(report.weight, jnp.float32)
        sent, mine = self._stage(e).encode(uplink, kept.uplink[e], report.update, sender._replace(weight=weight))
        kept = Kept(report.own, (*kept.uplink[:e], mine, *kept.uplink[e + 1 :]))
        return Encoded(sent, weight, kept, report.stats, report.metrics)

    def receive(self, e: int, uplink: Any, sent: Any, weight: Array) -> tuple[Update, Array]:
        """The server's reading of one report: (update, whether it may be used). Numbers that are not finite never spread.

        The update has 32 bits at least, whatever the model has: sums of reports in 16 bits would lose most of them.
        """
        update = tree.wide(self._stage(e).expand(uplink, sent, _update_shapes(self, e)))
        return update, tree.finite(update) & tree.finite(sent) & jnp.isfinite(weight) & (weight >= 0)

    def recover(self, e: int, state: State, kept: Kept, among: Among, reported: Array) -> Any:
        """In a simulation, what those whose reports count reveal once it is known whose do: leaves [K, ...], zeros of all others.

        `kept` [K, ...] is what they keep after the exchange. () where the uplink asks for nothing.
        """
        recover = self._stage(e).recover
        if recover is None:
            return ()

        def one(place: Array, own: Any) -> Any:
            return recover(state.uplink[e], own, self.sender(e, state.key, state.round, among, place), reported)

        found = jax.vmap(one)(jnp.arange(len(reported), dtype=jnp.int32), kept.uplink[e])
        return tree.where(reported, found, tree.zeros_like(found))

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
        """The server's end of an exchange, once all reports are in `acc`: those of `reported` [K], of those who were `here` [K].

        `each` has their stats, where they have some.
        `secret` is the key of noise that the server adds; where it is not given, it comes of the run's, which is for simulations.

        Where nobody reported the server stays as it is, its optimiser's momentum too; but not where a stage makes something of nothing
        (noise, which is to be there whoever took part).
        """
        update = self.algorithm.exchanges[e].update
        if update is None:
            return state
        key = keys.server(state.key, state.round, e)
        met, memory = self.value(e, state, acc)
        secret = keys.server_secret(state.key, state.round, e) if secret is None else secret
        info = Info(weight, clients, keys.shared(state.key, state.round, e), secret, here, reported, recovered)
        value, mine = self._stage(e).finish(state.uplink[e], met, info, key)
        draws = keys.update(state.key, state.round, e)
        server = update(state.server, Aggregate(value, weight, clients, draws, each))
        after = state._replace(
            server=server,
            uplink=(*state.uplink[:e], mine, *state.uplink[e + 1 :]),
            aggregator=(*state.aggregator[:e], memory, *state.aggregator[e + 1 :]),
        )
        moves = (clients > 0) | ((tree.norm(value) > 0) & tree.finite(value))
        moved = [jax.tree.map(partial(jnp.where, moves), getattr(after, part), getattr(state, part)) for part in _CONCLUDED]
        return state._replace(**dict(zip(_CONCLUDED, moved, strict=True)))

    def value(self, e: int, state: State, acc: Any) -> tuple[Any, Any]:
        """What the aggregator makes of all reports, before the stages' `finish`: (value, what the server keeps for the aggregator)."""
        return self.aggregator.value(acc, state.aggregator[e], keys.aggregate(state.key, state.round, e))

    def _message(self, e: int, server: Server) -> Message:
        return self.algorithm.exchanges[e].broadcast(server)

    def _message_shapes(self, e: int, server: Server) -> Message:
        return jax.eval_shape(lambda server: self._message(e, server), server)

    def _silent(self, e: int) -> bool:
        return self.algorithm.exchanges[e].update is None

    def _stage(self, e: int) -> Stage:
        """The uplink of exchange `e`: nothing for one from which no report leaves."""
        return _SILENT if self._silent(e) else self.uplink


_CONCLUDED = "server", "uplink", "aggregator"
"""Of a state, what the conclusion of an exchange changes."""
_SILENT = stage("silent", encode=lambda state, own, update, sender: ((), own))


def compose(
    algorithm: Algorithm, uplink: Stage | None = None, aggregator: Aggregator | None = None, downlink: Stage | None = None
) -> Round:
    """The pieces as one Round; raises, naming the piece and the way out, where they do not fit.

    Without an `uplink` updates are sent as they are; without an `aggregator` they are averaged by weight. The stage given as `downlink`
    treats what the server sends: it encodes at the server, which keeps what a client keeps for it on the way up (the residual of
    `feedback`), and every client expands.
    """
    uplink, downlink = chain() if uplink is None else uplink, chain() if downlink is None else downlink
    aggregator = mean() if aggregator is None else aggregator
    pieces = (algorithm, Algorithm, "algorithm"), (uplink, Stage, "uplink"), (aggregator, Aggregator, "aggregator")
    for value, kind, name in (*pieces, (downlink, Stage, "downlink")):
        if not isinstance(value, kind):
            way_out = "join several stages with fc.uplink.chain(a, b)" if kind is Stage else f"build one with fc.{name}s"
            raise TypeError(f"compose() needs {name}= to be of type {kind.__name__}, got {type(value).__name__}: {way_out}")
    _check_exchanges(algorithm)
    for e, exchange in enumerate(algorithm.exchanges):
        if exchange.needs_mean and not aggregator.linear:
            raise ValueError(
                f"{aggregator.name}() cannot take what clients report in exchange {e} of {algorithm.name}, which has a meaning only as "
                "a weighted mean (each client fills in one part of several). Use aggregator=fc.aggregators.mean()."
            )
    if uplink.hides and aggregator.keeps == "reports":
        raise ValueError(
            f"{aggregator.name}() needs every client's update, but {uplink.name!r} only reveals their sum. Use "
            "aggregator=fc.aggregators.total(), or leave that stage out."
        )
    composed = Round(_in_32_bits(algorithm), uplink, aggregator, downlink)
    _check_shapes(composed)
    return composed


def reports_of(composed: Round) -> list[Report]:
    """The shapes of what a client reports in each exchange, before any stage."""
    state = state_shapes(composed)
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.clients.own)
    return [composed.report_shapes(e, state.server, own) for e in range(len(composed.algorithm.exchanges))]


def check_population(composed: Round, clients: int, what: str) -> None:
    """Raises where the algorithm was made for another number of clients than there are."""
    population = composed.algorithm.population
    if population is not None and known(population) and population != clients:
        raise ValueError(
            f"{composed.algorithm.name} was made with population={population}, and there are {clients} {what}: its numbers would be "
            f"those of another algorithm. Make it with population={clients}"
        )


def _in_32_bits(algorithm: Algorithm) -> Algorithm:
    """The algorithm with what its server keeps beside the model in float32 at least, where the model has fewer bits.

    The server's update is computed in float32, too, and its results are cast once. Clients are sent what they would be sent otherwise.
    """
    if not any(leaf is not wide for leaf, wide in _leaves_and_wide(jax.eval_shape(algorithm.init_params, _key()))):
        return algorithm

    def init(params: Params) -> Server:
        given = {id(leaf) for leaf in jax.tree.leaves(params)}  # the model itself keeps its dtype
        return jax.tree.map(lambda x, wide: x if id(x) in given else wide, algorithm.init(params), algorithm.init(tree.wide(params)))

    def plain(server: Server) -> Server:
        """In the dtypes that the algorithm itself gives to what it keeps."""
        return tree.like(server, jax.eval_shape(algorithm.init, server.params))

    def exchange_of(exchange: Exchange) -> Exchange:
        conclude = exchange.update

        def update(server: Server, reports: Aggregate) -> Server:
            assert conclude is not None
            return tree.like(conclude(tree.wide(server), reports), server)

        return exchange._replace(broadcast=lambda server: exchange.broadcast(plain(server)), update=None if conclude is None else update)

    personal = algorithm.personal
    return algorithm._replace(
        init=init,
        exchanges=tuple(exchange_of(exchange) for exchange in algorithm.exchanges),
        personal=None if personal is None else lambda server, own: personal(plain(server), own),
    )


def _leaves_and_wide(a: Any) -> list[tuple[Any, Any]]:
    return list(zip(jax.tree.leaves(a), jax.tree.leaves(tree.wide(a)), strict=True))


def _key() -> Key:
    return jax.eval_shape(lambda: jax.random.key(0))


def _check_exchanges(algorithm: Algorithm) -> None:
    """Raises where the algorithm's exchanges are not what an engine can run."""
    exchanges: Any = algorithm.exchanges
    if not isinstance(exchanges, tuple) or isinstance(exchanges, Exchange) or not exchanges:
        said = "an empty tuple" if exchanges == () else f"a single {type(exchanges).__name__}"
        raise TypeError(f"exchanges= of an algorithm is a tuple with one Exchange or more, got {said}: write exchanges=(exchange,)")
    for e, exchange in enumerate(exchanges):
        if not isinstance(exchange, Exchange) or not isinstance(exchange.client, Client):
            what = exchange if not isinstance(exchange, Exchange) else exchange.client
            wanted = "an Exchange" if not isinstance(exchange, Exchange) else "a Client as its client="
            raise TypeError(f"exchange {e} of the algorithm should be {wanted}, got {type(what).__name__}: see fedjax_core.algorithms.base")
        if not isinstance(exchange.work, Work):
            raise TypeError(
                f"exchange {e} has work={exchange.work!r}, and should have a Work of fedjax_core.algorithms: TRAIN goes by the run's "
                "epochs or steps (it was 'train'), ONCE takes each example once (it was 'once'), Work(steps=0) looks at none"
            )


@lru_cache(maxsize=64)
def state_shapes(composed: Round) -> State:
    """The shapes of a state of one client, traced once for each round: with stages one in another that takes 0.2 s (2-core x86)."""
    return jax.eval_shape(lambda: composed.init(jax.random.key(0), 1))


@lru_cache(maxsize=64)
def _update_shapes(composed: Round, e: int) -> Update:
    """The shapes of the update of exchange `e`, traced once: whoever reads a report asks for them."""
    algorithm, params = composed.algorithm, jax.eval_shape(composed.algorithm.init_params, _key())
    own = jax.eval_shape(algorithm.init_client, params)
    return composed.report_shapes(e, jax.eval_shape(algorithm.init, params), own).update


def _check_downlink(composed: Round) -> None:
    """Raises where clients could not read by `expand` alone what the downlink's stage makes of a message."""
    algorithm, stage = composed.algorithm, composed.downlink
    for e, exchange in enumerate(algorithm.exchanges):
        message = jax.eval_shape(lambda key, exchange=exchange: exchange.broadcast(algorithm.init(algorithm.init_params(key))), _key())
        if jax.tree.leaves(jax.eval_shape(lambda message: stage.init(message), message)):
            raise ValueError(
                f"downlink= has {stage.name!r}, of which both ends keep state between rounds, and a client that was not in the last round "
                "lacks it: use a stage whose init= keeps nothing; what the server alone keeps for it goes into init_client="
            )
        if (said := not_given_back(stage, message)) is not None:
            raise ValueError(
                f"downlink={stage.name} does not give back by expand() the message of exchange {e} ({said}), so clients would begin from "
                "numbers that are not decoded: have it decode in expand()"
            )


def _check_shapes(composed: Round) -> None:
    """Raises where a stage or the server's update does not give back the structure it was given."""
    params = jax.eval_shape(lambda: composed.algorithm.init_params(jax.random.key(0)))
    server = jax.eval_shape(composed.algorithm.init, params)
    if not hasattr(server, "params"):
        raise TypeError(
            f"init= of an algorithm makes what the server keeps, which needs a field `params` with the model, and made a "
            f"{type(server).__name__} without: write class Global(NamedTuple): params: Params"
        )
    state = state_shapes(composed)
    _check_downlink(composed)
    _check_statistics(composed, server)
    own = jax.eval_shape(composed.algorithm.init_client, params)
    for e, exchange in enumerate(composed.algorithm.exchanges):
        report = composed.report_shapes(e, state.server, own)
        _same(report.own, own, f"what a client keeps after exchange {e}")
        if jnp.shape(report.weight) != ():
            raise ValueError(
                f"the weight of a report in exchange {e} is an array of shape {jnp.shape(report.weight)}, and must be one number: "
                "look at weighting=, which gets a client's numbers of examples and steps"
            )
        check_client_metrics(report.metrics, f"finish of exchange {e}")
        _check_stats(report.stats, e, silent=exchange.update is None)
        if report.stats and composed.uplink.hides:
            raise ValueError(
                f"{composed.algorithm.name} reports the stats {', '.join(report.stats)} in exchange {e}, which the server reads client by "
                f"client, but {composed.uplink.name!r} only reveals sums. Leave that stage out, or use an algorithm without stats."
            )
        if exchange.update is None:
            continue

        acc, value = jax.eval_shape(partial(_meet, composed), report.update)
        _same(value, tree.wide(report.update), f"the update of exchange {e} after {composed.uplink.name} and {composed.aggregator.name}")
        after = jax.eval_shape(partial(_conclude_one, composed, e), state, acc, nobody(report.stats, 1, 1))
        _same(after, state, f"the state after exchange {e}")


def _check_statistics(composed: Round, server: Server) -> None:
    """Raises where the server has running statistics that are to be each client's own."""
    names, _, personal = composed.algorithm.task.statistics
    sent = [leaf for leaf in tree.names(server.params) if any(tree.is_under(leaf, name) for name in names)]
    if personal and sent:
        raise ValueError(
            f"{composed.algorithm.name} sends {sent[0]!r}, which is each client's own by statistics='personal': use "
            "fc.algorithms.fedper, whose clients keep it, or statistics='shared', which averages it"
        )


def nobody(stats: Mapping[str, Any], cohort: int, population: int) -> Each | None:
    """`Each` of a cohort of so many empty places, for stats of these shapes; None where there are none."""
    if not stats:
        return None
    rows = {name: jnp.zeros((cohort, *x.shape), x.dtype) for name, x in stats.items()}
    return Each(rows, jnp.zeros(cohort, jnp.float32), jnp.full(cohort, population, jnp.int32))


def _check_stats(stats: Any, e: int, silent: bool) -> None:
    """Raises unless these are stats that a server can be given client by client: {name: an array of numbers}."""
    if not isinstance(stats, Mapping):
        raise TypeError(f"the stats of a report in exchange {e} are a {type(stats).__name__}: give a dict, {{'steps': seen.steps}}")
    check_names(stats, f"the report of exchange {e}", "stats")
    for name, x in stats.items():
        if not (hasattr(x, "dtype") and (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool)):
            raise TypeError(f"stats {name!r} of exchange {e} are a {type(x).__name__}: each is an array of numbers under a name of its own")
    if stats and silent:
        raise ValueError(f"exchange {e} is silent, so nobody reads the stats {', '.join(stats)}: give it an update=, or leave them out")


def _conclude_one(composed: Round, e: int, state: State, acc: Any, each: Each | None) -> State:
    """The state after the report of a client that is all of its cohort."""
    one, here, among = jnp.float32(1), jnp.ones(1, bool), Among(jnp.zeros((1, 2), jnp.uint32), jnp.ones(1, bool))
    recovered = composed.recover(e, state, state.clients, among, here)
    return composed.conclude(e, state, acc, one, one, here, here, recovered, each)


def _meet(composed: Round, update: Update) -> tuple[Any, Update]:
    """One update on its way up: (the aggregator's accumulator, the value that comes of it)."""
    uplink, mine = composed.uplink.init(update), composed.uplink.init_client(update)
    sender, shapes = alone(jax.random.key(0)), tree.shapes(update)
    sent, _ = composed.uplink.encode(uplink, mine, update, sender)
    expanded = composed.uplink.expand(uplink, sent, shapes)
    if tree.shapes(expanded) != tree.shapes(tree.wide(expanded)) and tree.shapes(update) != tree.shapes(tree.wide(update)):
        expanded = tree.wide(expanded)  # as `receive` does; of a model in 32 bits it gets what is no longer its update
    rows = jax.tree.map(lambda x: x[None], expanded)
    aggregator, shapes, key = composed.aggregator, tree.shapes(expanded), jax.random.key(0)
    acc = aggregator.add(aggregator.zero(shapes, 1), rows, jnp.ones(1), jnp.zeros(1, jnp.int32))
    met, _ = aggregator.value(acc, aggregator.init(shapes), key)
    return acc, composed.uplink.finish(uplink, met, _info(composed, uplink, mine, sender), key)[0]


def _info(composed: Round, uplink: Any, own: Any, sender: Sender) -> Info:
    """Of an exchange in which this one sender is all of the cohort."""
    recover, one, here = composed.uplink.recover, jnp.float32(1), sender.here
    found = () if recover is None else jax.tree.map(lambda x: x[None], recover(uplink, own, sender, here))
    return Info(one, one, sender.shared, sender.secret, here, here, found)


def check_metrics(composed: Round, columns: Columns, batch_size: int) -> tuple[str, ...]:
    """The names of the metrics of clients' steps and reports, in all exchanges; of `columns` only the shapes matter, and a row is enough.

    Raises where one of these, or of the task's evaluation, has a name that means something else, or where a client's is not one number.
    """
    leaves, structure = jax.tree.flatten(columns)
    rows = tuple(jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)) for x in leaves)
    return _metric_names(composed, structure, rows)


@lru_cache(maxsize=64)
def _metric_names(composed: Round, structure: Any, rows: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[str, ...]:
    mask: Any = jax.ShapeDtypeStruct((rows[0].shape[0],), jnp.float32)
    batch, key = Batch(jax.tree.unflatten(structure, rows), mask), jax.eval_shape(lambda: jax.random.key(0))
    state = state_shapes(composed)
    task = composed.algorithm.task
    check_names(jax.eval_shape(task.evaluation, jax.eval_shape(task.init, key), batch), "the task's evaluation")
    found: dict[str, Any] = {}
    reports = reports_of(composed)
    for e, exchange in enumerate(composed.algorithm.exchanges):

        def one(state: State, batch: Batch, key: Key, e: int = e, exchange: Exchange = exchange) -> Any:
            message = composed.told(e, state)
            own = jax.tree.map(lambda x: x[0], state.clients.own)
            carry = exchange.client.begin(message, own, key)
            if exchange.work.idle:
                return carry, (carry, {})
            return carry, exchange.client.step(message, carry, batch, key)

        where = f"the step of exchange {e}" if len(composed.algorithm.exchanges) > 1 else "the algorithm's step"
        carry, gives = jax.eval_shape(one, state, batch, key)
        if not isinstance(gives, tuple) or len(gives) != 2 or hasattr(gives, "_fields"):
            raise TypeError(
                f"{where} must return (carry, metrics), got {type(gives).__name__}: return carry, {{}} where there is no metric"
            )
        _same(gives[0], carry, f"the carry of {where}")
        check_client_metrics(gives[1], where)
        report = reports[e]
        if twice := sorted(gives[1].keys() & report.metrics.keys()):
            raise ValueError(f"metric {twice[0]!r} is given by the step of exchange {e} and by its finish: rename one of them")
        for name, metric in [*gives[1].items(), *report.metrics.items()]:
            if type(found.setdefault(name, metric)) is not type(metric):
                raise TypeError(f"metric {name!r} is a Mean in one exchange and a Sum in another, which do not add: rename one of them")
    return tuple(found)


def _same(got: Any, expected: Any, what: str) -> None:
    was: Any = jax.tree.structure(expected)
    now: Any = jax.tree.structure(got)
    if now != was:
        raise ValueError(f"{what} changed its structure, from {was} to {now}")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"{what} changed {jax.tree_util.keystr(path)} from {b.dtype}{list(b.shape)} to {a.dtype}{list(a.shape)}; "
                "every piece must give back the shapes and dtypes it was given"
            )
