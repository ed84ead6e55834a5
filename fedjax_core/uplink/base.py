"""The interface of stages: one step of the uplink, with its client's half and its server's half in one value.

    client: message, own = encode(state, own, update, sender)       (what crosses the wire is the message)
    server: update = expand(state, message, shapes)                 (one a client, before the aggregator; shapes are the update's)
            value, state = finish(state, value, info, key)          (once an exchange, after it)

`chain` puts stages one after another: encode from first to last, expand and finish from last to first.
`Sender` has what a stage may use besides the update, and `Info` what its `finish` may know.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import keys, tree
from fedjax_core.secure_aggregation.ring import Ring
from fedjax_core.settings import Settings, with_settings
from fedjax_core.types import Array, Key, Message, Own, Update


class Sender(NamedTuple):
    """The sender of a report and its cohort, which `encode` may use besides the update. A cohort has K
    places, some of which may be empty."""

    key: Key  # this client's draws, which the server could repeat: stochastic rounding
    # the same for all clients of the exchange and for `finish`: rotations, sketches, random coordinates
    shared: Key
    secret: (
        Key  # nobody else has it: noise. Of the run's key in a simulation, of the site's own secret at a site
    )
    pairs: Key  # [K], each shared with the client in that place alone: masks
    place: Array  # int32: the client's place in the cohort
    here: Array  # [K] bool: the places of those who take part
    weight: Array  # float32: of the report; 0 in `recover`


class Info(NamedTuple):
    """The facts of an exchange that `finish` may use besides the value."""

    weight: Array  # float32: sum of the weights
    clients: Array  # float32: how many clients are in the value
    shared: Key  # as the senders have it
    # the server's own: noise. Of the run's key in a simulation, of the coordinator's own secret in a
    # federation
    secret: Key
    here: Array  # [K] bool: the places of those who took part
    reported: Array  # [K] bool: of those whose report counts
    # leaves [K, ...]: what those who reported revealed afterwards, zeros of others; () where `recover` is
    # None
    recovered: Any = ()
    shapes: Any = ()  # of one update, as the stage was given it


class Promises(NamedTuple):
    """A stage's guarantees about a client's contribution, whatever the client's data: for sites' policies and
    for accountants."""

    bound: float | None = None  # the l2 norm of one report; None where none is known beforehand
    noise: float | None = (
        None  # the standard deviation of the noise that is added, in multiples of the bound; None: none is
    )
    at: Literal["client", "server"] = "client"
    """The place where noise is added: to each report before it leaves, or to the sum of all, for which the
    server must be trusted."""
    account: Any = None
    """The privacy account of its rounds, from fc.privacy: has `epsilon(rounds)`, `told(rounds)`, `rounds`,
    `delta` and `cohorts`."""
    reports: int = 0
    """The least number of reports in a sum for which its noise is as promised; 0: any number will do."""
    secret_state: bool = False
    """Whether the server's state of the stage would reveal the noise of earlier rounds: clients must then not
    read it."""


class Stage(NamedTuple):
    """One step of the uplink. Build it with `stage`, which fills in halves that do nothing."""

    name: str
    # the update's shapes -> what the server keeps for this stage; clients may read it
    init: Callable[[Update], Any]
    init_client: Callable[[Update], Own]  # the update's shapes -> what each client keeps for it
    encode: Callable[[Any, Own, Update, Sender], tuple[Message, Own]]
    expand: Callable[[Any, Message, Update], Update]
    finish: Callable[[Any, Update, Info, Key], tuple[Update, Any]]
    measurable: bool = False
    """Whether a site may report how much of an update's size the stage leaves (`uplink_norm`): not if it adds
    noise or masks, as that would reveal the size before."""
    settings: Settings = Settings()
    """The arguments that it was made with, by name: `with_settings` fills it in."""
    additive: bool = False
    """Whether messages may be summed before anybody reads one: `expand` changes nothing, or only checks."""
    linear: bool = False
    """Whether `expand` of a sum of messages is the sum of updates: their floats add up, and all else in them
    depends on `Sender.shared` alone."""
    ring: Ring | None = None
    """The ring of whole numbers in which messages travel under masks; None: without masks."""
    recover: Callable[[Any, Own, Sender, Array], Any] | None = None
    """(state, own, sender, reported [K]) -> what a client whose report counts reveals, once it is known whose
    do, such as masks shared with clients who dropped out."""
    promises: Promises = Promises()

    @property
    def hides(self) -> bool:
        """Whether the server learns nothing from a message, only from the sum of all."""
        return self.ring is not None


def _as_it_is(state: Any, message: Message, shapes: Update) -> Update:
    return message


def _unchanged(state: Any, value: Update, info: Info, key: Key) -> tuple[Update, Any]:
    return value, state


def stage(
    name: str,
    init: Callable[[Update], Any] = lambda shapes: (),
    init_client: Callable[[Update], Own] = lambda shapes: (),
    encode: Callable[[Any, Own, Update, Sender], tuple[Message, Own]] = lambda state, own, update, sender: (
        update,
        own,
    ),
    expand: Callable[[Any, Message, Update], Update] = _as_it_is,
    finish: Callable[[Any, Update, Info, Key], tuple[Update, Any]] = _unchanged,
    measurable: bool = False,
    additive: bool | None = None,
    linear: bool = False,
    ring: Ring | None = None,
    recover: Callable[[Any, Own, Sender, Array], Any] | None = None,
    promises: Promises | None = None,
) -> Stage:
    """A stage from the halves that do something; without an `expand` it is additive."""
    additive = expand is _as_it_is if additive is None else additive
    return Stage(
        name, init, init_client, encode, expand, finish,
        measurable=measurable, additive=additive, linear=linear, ring=ring, recover=recover, promises=promises or Promises(),
    )  # fmt: skip


@with_settings
def chain(*stages: Stage) -> Stage:
    """The stages as one: `chain(clip(1.0), quantize(8))` clips, then quantises what goes on the wire. Empty,
    it changes nothing.

    Each stage but the first must give back, by `expand`, what it was given, as the stages before it work on
    that. A stage that decodes only in `finish` (a ring of whole numbers) therefore comes first, and does
    itself what was to be done before it. Or it hides messages: the stages before it cannot look at one then,
    and must be additive, or linear, so that the server reads the sum of all messages instead of each. Nor may
    a stage after it change messages that only their sum can open.
    """
    for i, s in enumerate(stages):
        if not isinstance(s, Stage):
            raise TypeError(
                f"chain() takes stages, but argument {i} is a {type(s).__name__}: pass fc.uplink.clip(1.0) and the like"
            )
    name = f"chain({', '.join(s.name for s in stages)})"
    # no stage before this one can read a message
    opened = max((i for i, s in enumerate(stages) if s.hides), default=0)
    if opened:
        stages = (
            *(_of_the_sum(s) if s.linear and not s.additive else s for s in stages[:opened]),
            *stages[opened:],
        )
    for s in stages:
        if stages[opened].hides and not s.additive:
            raise ValueError(
                f"in {name}, stage {s.name!r} reads each message by itself, and {stages[opened].name!r} lets the server read only the sum "
                f"of all: leave {s.name!r} out, or use one that adds up, such as fc.uplink.clip, or before it one that is linear and the "
                "same for all clients: fc.uplink.randk(shared=True), count_sketch, rotated(fc.uplink.chain())"
            )

    def shapes_between(update: Update) -> list[Update]:
        """The shapes of each stage's input: those of the message of the stage before."""
        given = [update]
        for i, s in enumerate(stages):
            if i > opened:
                check_expands(s, given[-1], name)
            given.append(message_shapes(s, given[-1]))
        return given[:-1]

    def init(update: Update) -> Any:
        return tuple(s.init(u) for s, u in zip(stages, shapes_between(update), strict=True)) if stages else ()

    def init_client(update: Update) -> Own:
        return (
            tuple(s.init_client(u) for s, u in zip(stages, shapes_between(update), strict=True))
            if stages
            else ()
        )

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        kept = []
        for i, s in enumerate(stages):
            update, stage_state = s.encode(state[i], own[i], update, _apart(sender, i))
            kept.append(stage_state)
        return update, tuple(kept)

    def expand(state: Any, message: Message, shapes: Update) -> Update:
        given = shapes_between(shapes)
        for i in reversed(range(opened, len(stages))):
            message = stages[i].expand(state[i], message, given[i])
        return message

    def finish(state: Any, value: Update, info: Info, key: Key) -> tuple[Update, Any]:
        kept, given = list(state), [info.shapes] * len(stages)
        if opened and jax.tree.leaves(info.shapes):
            given = shapes_between(info.shapes)
        for i in reversed(range(len(stages))):
            stage_info = info._replace(
                shapes=given[i],
                shared=jax.random.fold_in(info.shared, i),
                secret=jax.random.fold_in(info.secret, i),
                recovered=info.recovered[i] if info.recovered else (),
            )
            value, kept[i] = stages[i].finish(state[i], value, stage_info, jax.random.fold_in(key, i))
        return value, tuple(kept)

    def recover(state: Any, own: Own, sender: Sender, reported: Array) -> Any:
        return tuple(
            s.recover(state[i], own[i], _apart(sender, i), reported) if s.recover is not None else ()
            for i, s in enumerate(stages)
        )

    return Stage(
        name, init, init_client, encode, expand, _unchanged if all(s.finish is _unchanged for s in stages) else finish,
        measurable=all(s.measurable for s in stages),
        additive=all(s.additive for s in stages),
        linear=all(s.linear for s in stages),
        ring=next((s.ring for s in reversed(stages) if s.hides), None),
        recover=recover if any(s.recover is not None for s in stages) else None,
        promises=_promised(stages, name),
    )  # fmt: skip


def _of_the_sum(inner: Stage) -> Stage:
    """A linear stage for a server that reads the mean of all messages instead of each; the parts that are not
    summed are drawn again."""

    def floating(x: Any) -> bool:
        return bool(jnp.issubdtype(x.dtype, jnp.floating))

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        sent, own = inner.encode(state, own, update, sender)
        return tuple(x for x in jax.tree.leaves(sent) if floating(x)), own

    def finish(state: Any, value: Message, info: Info, key: Key) -> tuple[Update, Any]:
        zeros, sender = tree.zeros_like(info.shapes), alone(info.shared)._replace(shared=info.shared)
        structure: Any
        leaves, structure = jax.tree.flatten(
            inner.encode(state, inner.init_client(info.shapes), zeros, sender)[0]
        )
        summed = iter(value)
        message = structure.unflatten([next(summed).astype(x.dtype) if floating(x) else x for x in leaves])
        return inner.finish(state, inner.expand(state, message, info.shapes), info, key)

    return inner._replace(encode=encode, expand=_as_it_is, finish=finish, additive=True, linear=False)


def _promised(stages: tuple[Stage, ...], name: str) -> Promises:
    """The promise of several stages: that of the stage that adds noise, which holds whatever else is done;
    else the last bound."""
    noisy = [s for s in stages if s.promises.noise is not None]
    if len(noisy) > 1:
        raise ValueError(
            f"in {name}, {noisy[0].name!r} and {noisy[1].name!r} add noise, and an account is kept of one: leave one out"
        )
    if noisy and noisy[0].promises.at == "server":
        for s in stages[stages.index(noisy[0]) + 1 :]:
            if s.finish is not _unchanged:
                raise ValueError(
                    f"in {name}, {s.name!r} changes the sum of reports before {noisy[0].name!r} adds its noise, which would no longer "
                    f"be of the size that is promised: put {s.name!r} before it, or leave it out"
                )
    bounded = noisy or [s for s in stages if s.promises.bound is not None]
    return bounded[-1].promises if bounded else Promises()


def _apart(sender: Sender, i: int) -> Sender:
    """The sender with keys for the i-th of several stages."""
    key, shared, secret = (jax.random.fold_in(k, i) for k in (sender.key, sender.shared, sender.secret))
    pairs = jax.vmap(lambda k: jax.random.fold_in(k, i))(sender.pairs)
    return sender._replace(key=key, shared=shared, secret=secret, pairs=pairs)


def alone(key: Key) -> Sender:
    """A client that is alone in its cohort, with all keys derived from one."""
    shared, secret, pair = (jax.random.fold_in(key, i) for i in range(3))
    return Sender(
        key, shared, secret, pair[None], place=jnp.int32(0), here=jnp.ones(1, bool), weight=jnp.float32(1)
    )


def by_itself(sender: Sender) -> Sender:
    """The same sender alone in its cohort, so that it shares no masks."""
    return sender._replace(pairs=sender.pairs[:1], place=jnp.int32(0), here=jnp.ones(1, bool))


def roundtrip(stage: Stage, update: Update, key: Key) -> Update:
    """The update that the server reads when a client sends this one through `stage`, both with nothing kept
    from before."""
    state, own = stage.init(tree.shapes(update)), stage.init_client(tree.shapes(update))
    sent, _ = stage.encode(state, own, update, alone(key))
    return stage.expand(state, sent, tree.shapes(update))


def bits(stage: Stage, update: Update) -> int:
    """The number of bits that `stage` sends for an update of these shapes: those of the message's bytes,
    packed as they travel.

    >>> bits(chain(), {"w": jnp.zeros(10)})
    320
    """
    return 8 * tree.nbytes(message_shapes(stage, update))


def message_shapes(stage: Stage, update: Update) -> Message:
    """The shapes of the message that `stage` sends for an update of these shapes; their `tree.nbytes` is the
    cost of a report."""
    leaves, structure = jax.tree.flatten(tree.shapes(update))
    return _message_shapes(stage, structure, tuple(leaves))


@lru_cache(maxsize=256)
def _message_shapes(stage: Stage, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Message:
    """Message shapes, traced once: nested stages need them again and again."""

    def send(update: Update, key: Key) -> Message:
        return stage.encode(stage.init(update), stage.init_client(update), update, alone(key))[0]

    return jax.eval_shape(send, jax.tree.unflatten(structure, leaves), keys.shape())


def uses(stage: Stage, update: Update) -> frozenset[str]:
    """The fields of its `Sender` that the message of `stage` depends on, for updates of these shapes."""
    one = jax.eval_shape(lambda: alone(jax.random.key(0)))
    # a client that is alone shares no mask
    two = {name: jax.ShapeDtypeStruct((2,), getattr(one, name).dtype) for name in ("pairs", "here")}
    sender = one._replace(**two)

    def send(sender: Sender, update: Update) -> Any:
        return stage.encode(stage.init(update), stage.init_client(update), update, sender)

    used = tree.depends(send, sender, update)
    return frozenset(name for name, needed in zip(Sender._fields, used, strict=False) if needed)


def check_expands(stage: Stage, given: Update, where: str) -> None:
    """Raises unless `stage` gives back by `expand` the structure, shapes and dtypes that it was given: what
    is around it works on that."""
    if (reason := not_given_back(stage, given)) is not None:
        raise ValueError(
            f"in {where}, stage {stage.name!r} does not give back by expand() what it was given ({reason}), so what stands before it "
            "would work on numbers that are not decoded. Have it decode in expand(); or, where it decodes only in finish(), put it "
            "first and alone, and let it do the clipping and the like in its own encode()."
        )


def not_given_back(stage: Stage, given: Update) -> str | None:
    """The difference between what `stage` gives back by `expand` and what it was given, in structure, shapes
    or dtypes, in words; None where there is none."""
    sent = message_shapes(stage, given)
    back = jax.eval_shape(lambda sent: stage.expand(stage.init(given), sent, given), sent)
    before: Any = jax.tree.structure(given)
    after: Any = jax.tree.structure(back)
    if before != after:
        return f"the structure is {before} before and {after} after"
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(back), strict=True):
        if tree.wide(tree.shapes(a)) != tree.wide(tree.shapes(b)):  # in 16 bits or in 32: sums are wide
            return f"leaf {jax.tree_util.keystr(path)} is {a.dtype}{list(a.shape)} before and {b.dtype}{list(b.shape)} after"
    return None
