"""`fc.compose`: checks that an algorithm, its stages and an aggregator fit, and joins them into a `Round`.

Everything is checked by shapes, before any number is computed: that each piece gives back the structure, the
shapes and the dtypes that it was given, that metrics and stats have names and kinds that add up, and that no
piece needs what another one hides.

>>> import optax
>>> from fedjax_core import aggregators, algorithms, models, uplink
>>> algorithm = algorithms.fedavg(models.linear(features=3), local=optax.sgd(0.1))
>>> composed = compose(algorithm, uplink=uplink.chain(uplink.clip(1.0), uplink.quantize(bits=8)))
>>> composed.uplink.name, composed.aggregator.name
('chain(clip, quantize)', 'mean')
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_core import keys, promises, tree
from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.mean import mean
from fedjax_core.aggregators.slotted import Slotted, slotted
from fedjax_core.aggregators.stack import stack
from fedjax_core.algorithms.base import Algorithm, Each, Exchange, named
from fedjax_core.checks import takes
from fedjax_core.compatibility import check_exchanges, check_meeting, reporting
from fedjax_core.constants import remembered
from fedjax_core.downlink import check_known, counts_clients, with_memory
from fedjax_core.metrics import check_client_metrics, check_names
from fedjax_core.precision import in_32_bits
from fedjax_core.round import Among, Round, State, nobody, reports_of, state_shapes
from fedjax_core.task import Task
from fedjax_core.types import Batch, Columns, Key, Server, Update, known
from fedjax_core.uplink.base import Info, Sender, Stage, alone, chain, not_given_back
from fedjax_core.uplink.delta import Delta


def compose(
    algorithm: Algorithm,
    uplink: Stage | None = None,
    aggregator: Aggregator | None = None,
    downlink: Stage | Delta | None = None,
) -> Round:
    """Joins the pieces into a Round; raises, naming the piece and the way out, where they do not fit.

    Without an `uplink` updates are sent as they are; without an `aggregator` they are averaged by weight, or
    stacked for an algorithm that needs every one of them. `downlink` is a stage for the server's messages:
    the server encodes, and keeps the state that a client keeps on the way up (such as the residual of
    `feedback`); every client expands. A `fc.uplink.delta` has memory at both ends.
    """
    uplink = chain() if uplink is None else uplink
    coded = downlink if isinstance(downlink, Delta) else None
    down: Any = chain() if downlink is None else coded.as_stage if coded is not None else downlink
    needs_all = isinstance(algorithm, Algorithm) and any(x.reports == "all" for x in reporting(algorithm))
    aggregator = (stack() if needs_all else mean()) if aggregator is None else aggregator
    pieces = (
        (algorithm, Algorithm, "algorithm"),
        (uplink, Stage, "uplink"),
        (aggregator, Aggregator, "aggregator"),
    )
    for value, kind, name in (*pieces, (down, Stage, "downlink")):
        if not isinstance(value, kind):
            way_out = (
                "join several stages with fc.uplink.chain(a, b)"
                if kind is Stage
                else f"build one with fc.{name}s"
            )
            raise TypeError(
                f"compose() needs {name}= to be of type {kind.__name__}, got {type(value).__name__}: {way_out}"
            )
    check_exchanges(algorithm)
    algorithm = named(algorithm)
    if coded is not None:
        check_known(coded, uplink)
        algorithm = with_memory(algorithm, coded)
    check_meeting(algorithm, uplink, aggregator)
    if (slots := max((x.slots for x in reporting(algorithm)), default=1)) > 1:
        aggregator = slotted(aggregator, slots)
    composed = Round(promises.kept(in_32_bits(algorithm), uplink), uplink, aggregator, down)
    _check_shapes(composed)
    if uplink.promises.noise is not None:
        promises.check(composed.algorithm, uplink, aggregator, reports_of(composed))
    _check_weights(composed)
    return composed


def _check_weights(composed: Round) -> None:
    """Raises where clients weigh their reports, and the aggregator would count all alike."""
    if not composed.aggregator.alike:
        return
    server, name = state_shapes(composed).server, composed.algorithm.name
    for e, exchange in enumerate(composed.algorithm.exchanges):
        by_work, by_told = (
            promises.weighs(composed.algorithm, server, e) if exchange.update is not None else (False, False)
        )
        if by_work or by_told:
            raise ValueError(
                f"{composed.aggregator.name}() counts all clients alike, and the reports of {name} have weights, by "
                f"{'what each client worked on' if by_work else 'what each client is told'}, which would be dropped. Give the algorithm "
                "weighting=fc.algorithms.uniform or, where it takes no weighting=, wrap it: fc.algorithms.unweighted(algorithm). Or take a "
                "rule that goes by weights: trimmed_mean(..., weighted=True), median(weighted=True) or rfa(...)"
            )


def check_population(composed: Round, clients: int, what: str) -> None:
    """Raises where the algorithm was made for another number of clients than there are."""
    population = composed.algorithm.population
    if population is not None and known(population) and population != clients:
        raise ValueError(
            f"{composed.algorithm.name} was made with population={population}, and there are {clients} "
            f"{what}: its numbers would be those of another algorithm. Make it with population={clients}"
        )


def check_repeats(composed: Round, most: int, what: str = "client") -> None:
    """Raises where a client (or a site: `what`) of a cohort was drawn `most` times, and the round could not
    count it so often."""
    if most <= 1:
        return
    if composed.uplink.hides:
        raise ValueError(
            f"a {what} of this cohort was drawn {most} times, and {composed.uplink.name} hides its report, which can "
            "therefore not be counted so often: draw cohorts without replacement"
        )
    if counts_clients(state_shapes(composed).server):
        raise ValueError(
            f"a {what} of this cohort was drawn {most} times, and {composed.downlink.name} in one stream goes on once as "
            f"many reports came as there are {what}s: draw cohorts without replacement, or give it per_client=True"
        )


def _check_address(composed: Round, server: Server) -> None:
    """Raises unless an exchange's `address` gives one row for each of its clients."""
    for e, exchange in enumerate(composed.algorithm.exchanges):
        if exchange.address is None:
            continue
        clients: Any = jax.ShapeDtypeStruct((3,), jnp.int32)
        for leaf in jax.tree.leaves(jax.eval_shape(exchange.address, server, clients)):
            if leaf.shape[:1] != (3,):
                raise ValueError(
                    f"address= of exchange {e} gives an array of shape {leaf.shape} for 3 clients, and needs a row for each: [3, ...]"
                )


def _check_downlink(composed: Round) -> None:
    """Raises where clients could not decode the downlink's messages by `expand` alone."""
    algorithm, stage = composed.algorithm, composed.downlink
    for e, exchange in enumerate(algorithm.exchanges):
        message = jax.eval_shape(
            lambda key, exchange=exchange: exchange.broadcast(algorithm.init(algorithm.init_params(key))),
            keys.shape(),
        )
        if jax.tree.leaves(jax.eval_shape(lambda message: stage.init(message), message)):
            raise ValueError(
                f"downlink= has {stage.name!r}, of which both ends keep state between rounds, and a client "
                "that was not in the last round lacks it: use a stage whose init= keeps nothing; what the "
                "server alone keeps for it goes into init_client="
            )
        if (reason := not_given_back(stage, message)) is not None:
            raise ValueError(
                f"downlink={stage.name} does not give back by expand() the message of exchange {e} ({reason}), "
                "so clients would begin from numbers that are not decoded: have it decode in expand()"
            )


def _check_functions(task: Any) -> None:
    """Raises where a function of the task takes other arguments than it will be called with."""
    if not isinstance(task, Task):
        return
    takes("init", task.init, "key")
    takes("loss", task.loss, "params", "batch", "key")
    optional = {"metrics": ("params", "batch"), "predict": ("params", "batch"), "check": ("clients",)}
    for name, arguments in optional.items():
        if (function := getattr(task, name)) is not None:
            takes(name, function, *arguments)


def _check_shapes(composed: Round) -> None:
    """Raises where a stage or the server's update does not give back the structure it was given."""
    _check_functions(composed.algorithm.task)
    params = jax.eval_shape(composed.algorithm.init_params, keys.shape())
    server = jax.eval_shape(composed.algorithm.init, params)
    if not hasattr(server, "params"):
        raise TypeError(
            "init= of an algorithm makes what the server keeps, which needs a field `params` with the "
            f"model, and made a {type(server).__name__} without: write class Global(NamedTuple): params: "
            "Params"
        )
    _check_address(composed, server)
    state = state_shapes(composed)
    _check_downlink(composed)
    _check_statistics(composed, server)
    own = jax.eval_shape(composed.algorithm.init_client, params)
    for e, exchange in enumerate(composed.algorithm.exchanges):
        report = composed.report_shapes(e, state.server, own)
        _same(report.own, own, f"what a client keeps after exchange {e}")
        if jnp.shape(report.weight) != ():
            raise ValueError(
                f"the weight of a report in exchange {e} is an array of shape {jnp.shape(report.weight)}, "
                "and must be one number: look at weighting=, which gets a client's numbers of examples and "
                "steps"
            )
        check_client_metrics(report.metrics, f"finish of exchange {e}")
        _check_stats(report.stats, e, silent=exchange.update is None)
        if report.stats and composed.uplink.hides:
            raise ValueError(
                f"{composed.algorithm.name} reports the stats {', '.join(report.stats)} in exchange {e}, "
                f"which the server reads client by client, but {composed.uplink.name!r} only reveals sums. "
                "Leave that stage out, or use an algorithm without stats."
            )
        if exchange.update is None:
            continue
        _check_finish(composed, e, report.update)
        _check_slot(report.slot, e)
        acc, value = jax.eval_shape(partial(_meet, composed, e), report.update)
        what = f"the update of exchange {e} after {composed.uplink.name} and {composed.aggregator.name}"
        _same(value, _value_shapes(composed, exchange, report.update), what)
        after = jax.eval_shape(
            partial(_conclude_one, composed, e), state, acc, nobody(exchange, report.stats, 1, 1)
        )
        _same(after, state, f"the state after exchange {e}")


def _value_shapes(composed: Round, exchange: Exchange, update: Update) -> Update:
    """The shapes of the value that reports of this update come to: one, one a slot, or one a client (of a
    cohort of one)."""
    wide = tree.shapes(tree.wide(update))
    if exchange.reports != "all" and composed.slots == 1:
        return wide
    rows = 1 if exchange.reports == "all" else composed.slots
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype), wide)


def _check_slot(slot: Any, e: int) -> None:
    """Raises unless a report names its slot by one whole number."""
    dtype = jnp.int32 if isinstance(slot, int) else getattr(slot, "dtype", None)
    if dtype is None or jnp.shape(slot) != () or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"the slot of a report in exchange {e} is {slot!r}, and must be one whole number: jnp.int32(0)"
        )


def _check_finish(composed: Round, e: int, update: Update) -> None:
    """Raises where a stage's `finish` has something to do that is not for several values at once."""
    uplink, exchange = composed.uplink, composed.algorithm.exchanges[e]
    if composed.slots > 1 and jax.tree.leaves(jax.eval_shape(uplink.init, update)):
        raise ValueError(
            f"{uplink.name} keeps state at the server for one value, and {composed.algorithm.name} has {composed.slots} "
            "slots: leave that stage out"
        )
    if exchange.reports != "all":
        return

    def finish(value: Update, key: Key) -> Update:
        sender = alone(key)
        info = Info(jnp.float32(1), jnp.float32(1), key, key, sender.here, sender.here, ())
        return uplink.finish(uplink.init(update), value, info, key)[0]

    traced: Any = jax.make_jaxpr(finish)(tree.wide(update), keys.shape()).jaxpr
    if traced.outvars != traced.invars[: len(traced.outvars)]:
        raise ValueError(
            f"{uplink.name} has something left to do once reports have met (finish), and the server of "
            f"{composed.algorithm.name} needs every report by itself: leave that stage out"
        )


def _check_statistics(composed: Round, server: Server) -> None:
    """Raises where the server has running statistics that are to be each client's own."""
    names, _, personal = composed.algorithm.task.statistics
    sent = [leaf for leaf in tree.names(server.params) if any(tree.is_under(leaf, name) for name in names)]
    if personal and sent:
        raise ValueError(
            f"{composed.algorithm.name} sends {sent[0]!r}, which is each client's own by "
            "statistics='personal': use fc.algorithms.fedper, whose clients keep it, or statistics='shared', "
            "which averages it"
        )


def _check_stats(stats: Any, e: int, silent: bool) -> None:
    """Raises unless these are stats that a server can read client by client: {name: an array of numbers}."""
    if not isinstance(stats, Mapping):
        raise TypeError(
            f"the stats of a report in exchange {e} are a {type(stats).__name__}: give a dict, {{'steps': seen.steps}}"
        )
    check_names(stats, f"the report of exchange {e}", "stats")
    for name, x in stats.items():
        if not (hasattr(x, "dtype") and (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool)):
            raise TypeError(
                f"stats {name!r} of exchange {e} are a {type(x).__name__}: each is an array of numbers under a name of its own"
            )
    if stats and silent:
        raise ValueError(
            f"exchange {e} is silent, so nobody reads the stats {', '.join(stats)}: give it an update=, or leave them out"
        )


def _conclude_one(composed: Round, e: int, state: State, acc: Any, each: Each | None) -> State:
    """The state after a round whose cohort is one client."""
    one, here, among = (
        jnp.float32(1),
        jnp.ones(1, bool),
        Among(jnp.zeros((1, 2), jnp.uint32), jnp.ones(1, bool)),
    )
    recovered = composed.recover(e, state, state.clients, among, here)
    return composed.conclude(e, state, acc, one, one, here, here, recovered, each)


def _meet(composed: Round, e: int, update: Update) -> tuple[Any, Update]:
    """Sends one update through uplink and aggregator: (the accumulator, the value that comes of it)."""
    uplink, client_state = composed.uplink.init(update), composed.uplink.init_client(update)
    sender, shapes = alone(jax.random.key(0)), tree.shapes(update)
    sent, _ = composed.uplink.encode(uplink, client_state, update, sender)
    expanded = composed.uplink.expand(uplink, sent, shapes)
    of_16_bits = tree.shapes(update) != tree.shapes(tree.wide(update))
    if of_16_bits and tree.shapes(expanded) != tree.shapes(tree.wide(expanded)):
        # As `receive` does, so that a model in 32 bits gets an update in 32 bits.
        expanded = tree.wide(expanded)
    expanded = Slotted(expanded, jnp.int32(0)) if composed.slots > 1 else expanded
    rows = jax.tree.map(lambda x: x[None], expanded)
    aggregator, shapes, key = composed.aggregator, tree.shapes(expanded), jax.random.key(0)
    acc = aggregator.add(aggregator.zero(shapes, 1), rows, jnp.ones(1), jnp.zeros(1, jnp.int32))
    met, _ = aggregator.value(acc, aggregator.init(shapes), key)
    return acc, composed.finish(e, uplink, met, _info(composed, uplink, client_state, sender), key)[0]


def _info(composed: Round, uplink: Any, own: Any, sender: Sender) -> Info:
    """The `Info` of an exchange whose cohort is this one sender."""
    recover, one, here = composed.uplink.recover, jnp.float32(1), sender.here
    recovered = () if recover is None else jax.tree.map(lambda x: x[None], recover(uplink, own, sender, here))
    return Info(one, one, sender.shared, sender.secret, here, here, recovered)


def check_metrics(composed: Round, columns: Columns, batch_size: int) -> tuple[str, ...]:
    """The names of the metrics of clients' steps and reports, in all exchanges.

    Only the shapes of `columns` matter, and one row is enough.

    Raises where one of these, or of the task's evaluation, has a name that means something else, or where a
    client's metric is not one number.
    """
    return _inspect_steps(composed, *_rows(columns, batch_size))[0]


def protecting_steps(
    composed: Round, columns: Columns, batch_size: int, sampled: bool = False
) -> tuple[bool, ...]:
    """Whether each exchange's steps draw noise that protects a client's examples (`keys.protecting`); with
    `sampled`, whether the promise counts on batches that are Poisson samples."""
    _, protecting, on_samples = _inspect_steps(composed, *_rows(columns, batch_size))
    return on_samples if sampled else protecting


def _rows(columns: Columns, batch_size: int) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    leaves, structure = jax.tree.flatten(columns)
    return structure, tuple(
        jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))
        for x in leaves
    )


@remembered(maxsize=64)
def _inspect_steps(
    composed: Round, structure: Any, rows: tuple[jax.ShapeDtypeStruct, ...]
) -> tuple[tuple[str, ...], tuple[bool, ...], tuple[bool, ...]]:
    """(the names of metrics, which exchanges' steps draw noise that protects examples, of which of these the
    promise counts on Poisson samples); each step is traced once for all."""
    mask: Any = jax.ShapeDtypeStruct((rows[0].shape[0],), jnp.float32)
    batch, key = Batch(jax.tree.unflatten(structure, rows), mask), keys.shape()
    state = state_shapes(composed)
    task = composed.algorithm.task
    check_names(
        jax.eval_shape(task.evaluation, jax.eval_shape(task.init, key), batch), "the task's evaluation"
    )
    kinds: dict[str, Any] = {}
    protecting, sampled = [], []
    reports = reports_of(composed)
    for e, exchange in enumerate(composed.algorithm.exchanges):

        def one(state: State, batch: Batch, key: Key, e: int = e, exchange: Exchange = exchange) -> Any:
            message = composed.told(e, state)
            own = jax.tree.map(lambda x: x[0], state.clients.own)
            carry = exchange.client.begin(message, own, key)
            if exchange.work.idle:
                return carry, (carry, {})
            return carry, exchange.client.step(message, carry, batch, key)

        where = (
            f"the step of exchange {e}" if len(composed.algorithm.exchanges) > 1 else "the algorithm's step"
        )
        traced, (carry, gives) = jax.make_jaxpr(one, return_shape=True)(state, batch, key)
        protecting.append(keys.protects(traced.jaxpr))
        sampled.append(keys.protects(traced.jaxpr, sampled=True))
        if not isinstance(gives, tuple) or len(gives) != 2 or hasattr(gives, "_fields"):
            raise TypeError(
                f"{where} must return (carry, metrics), got {type(gives).__name__}: return carry, {{}} where there is no metric"
            )
        _same(gives[0], carry, f"the carry of {where}")
        check_client_metrics(gives[1], where)
        report = reports[e]
        if twice := sorted(gives[1].keys() & report.metrics.keys()):
            raise ValueError(
                f"metric {twice[0]!r} is given by the step of exchange {e} and by its finish: rename one of them"
            )
        for name, metric in [*gives[1].items(), *report.metrics.items()]:
            if type(kinds.setdefault(name, metric)) is not type(metric):
                raise TypeError(
                    f"metric {name!r} is a Mean in one exchange and a Sum in another, which do not add: rename one of them"
                )
    return tuple(kinds), tuple(protecting), tuple(sampled)


def _same(got: Any, expected: Any, what: str) -> None:
    was: Any = jax.tree.structure(expected)
    now: Any = jax.tree.structure(got)
    if now != was:
        raise ValueError(f"{what} changed its structure, from {was} to {now}")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"{what} changed {jax.tree_util.keystr(path)} from {b.dtype}{list(b.shape)} to "
                f"{a.dtype}{list(a.shape)}; every piece must give back the shapes and dtypes it was given"
            )
