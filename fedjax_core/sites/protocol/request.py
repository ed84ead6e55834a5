"""The contents of a request: `Requests` writes it once for all sites, and each site reads its part.

    fields     sites (how many), first (whether the initial own state is there), key, key_kind; and its kind's,
               such as train_seconds, the time limit; needed, recent and oldest, on what may be asked again
    tensors    sites (address and version of each), first, prepared (parameters of preprocessing); its kind's

A request lists every site by its address, with the version of its own state, so one message serves all sites:
each finds itself."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from msgspec import UNSET

from fedjax_core import keys
from fedjax_core.data.addresses import addresses_of
from fedjax_core.round import State
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import Bytes, Scalar, T, in_lines
from fedjax_core.sites.wire.envelope import COORDINATOR, SITES, Header, encode_both
from fedjax_core.sites.wire.identity import SiteKey
from fedjax_core.sites.wire.trees import to_tensors
from fedjax_core.types import Array, Key

Record = Callable[[str, str, int, Mapping[str, Scalar]], None]
"""(party, what, round, details): writes an entry into the audit log, if there is one."""

PREPARED = "prepared"
"""The name of a request's tensors with the parameters by which sites prepare their columns."""

TRAIN_SECONDS = "train_seconds"
"""The field of a request that limits a site's time to train."""

WITHHELD = "withheld"
"""The field of a description that lists the metrics that the site's policy does not let leave."""

NEEDED, RECENT_FIELD = "needed", "recent"
"""The fields of a request with the versions that a resume may need, and how many others are kept."""

OLDEST = "oldest"
"""The field of a request with the first round that may still be asked again."""

RECENT = 64
"""How many versions of its own state a site keeps if nobody says which may be asked for again."""

_LINE, _LINES = 1000, 200  # most letters in a field, and most such fields
# How many answers are remembered: if a request does not say which may be asked again, and if it does.
_LAST, _MOST_KNOWN = (
    64,
    10_000,
)
_MOST = 100_000  # largest count in a request


class BadRequest(Refused):
    """The request lacks something that it needs."""

    code = "bad-request"


class NotInCohort(Refused):
    """The request does not list the site."""

    code = "not-in-cohort"


def addresses(names: Sequence[str]) -> np.ndarray:
    """[N, 2] uint32: each site's address, from which its random keys are derived."""
    return addresses_of(np.array(names, dtype=np.str_))


class RunContext(NamedTuple):
    """The context of a request in a run: its state, and the version of each site's own state."""

    state: State
    version: np.ndarray  # [N] int
    # [C, N] int: the versions that C states may ask for again; None: unknown
    needed: np.ndarray | None = None


class Recovery:
    """The states from which a run may resume, those of its checkpoints: they determine what sites must
    keep."""

    def __init__(self) -> None:
        self.versions: list[Sequence[int]] = []
        """For each such state, the version of each site's own state."""
        self.oldest: int | None = None
        """The first round that may still be asked again; None: unknown."""
        self.recent = RECENT
        """How many other versions are kept too."""

    def retain(self, needs: Sequence[Mapping[str, Any]] | None) -> None:
        """Lets sites forget what neither states with these needs nor the present one require; None: keeps
        more."""
        self.recent = RECENT if needs is None else 0
        if needs is None:
            self.oldest = None
            return
        self.versions = [list(one["versions"]) for one in needs if one["versions"]]
        self.oldest = min((int(one["oldest"]) for one in needs), default=None)

    def needed(self, begun: np.ndarray) -> np.ndarray:
        """[C, N] int32: the versions that may be asked for again in a round that begins with the versions
        `begun` [N]."""
        return np.unique(np.array([*self.versions, begun], np.int32), axis=0)

    def fields(self, needed: np.ndarray) -> dict[str, Scalar]:
        """The fields of a request with these versions. They are no tensors, as a repeated request must have
        the same tensors."""
        text = needed.astype("<i4").tobytes().hex()
        lines = [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
        if len(lines) > _LINES:
            return {}
        return {
            RECENT_FIELD: self.recent,
            **{NEEDED if i == 0 else f"{NEEDED}.{i + 1}": line for i, line in enumerate(lines)},
        }


class Requests:
    """Writes the coordinator's requests, each signed and recorded."""

    def __init__(self, run: str, config: str, addresses: np.ndarray, key: SiteKey, record: Record) -> None:
        self.run, self.config, self.addresses = run, config, addresses
        self.first: Any = None
        """The initial own state of a site; known once the run has a state."""
        self.prepared: Any = ()
        """The parameters by which sites prepare their columns, an entry a step; known once all sites were
        measured."""
        self.announced = ""
        """The digest of the large request announced last (requests.py)."""
        self.head: Callable[[], str | None] = lambda: None
        """Gives the head of the coordinator's audit log, which goes with every request; None: there is none
        yet."""
        self.recovery = Recovery()
        self._key, self._record, self._sequence, self._secret = key, record, 0, key.secret("noise")
        self._drawn: tuple[Key, dict[str, Scalar]] | None = None

    def write(
        self,
        kind: str,
        number: int,
        e: int = 0,
        *,
        to: Iterable[str],
        context: RunContext | None = None,
        body: Mapping[str, Any] | None = None,
        fields: Mapping[str, Scalar] | None = None,
        draws: bool = False,
    ) -> Bytes:
        """The signed request of round `number`, one for all sites; those named `to` are asked. With `draws`
        it has the run's key."""
        header_fields, sent = dict(fields or {}), dict(body or {})
        if context is not None:
            if self.first is None:
                raise ValueError(
                    "this federation has not made a state yet: call init() with the run's key and params, also before resuming"
                )
            new = bool((context.version == 0).any() and jax.tree.leaves(self.first))
            header_fields |= {
                "sites": len(context.version),
                "first": new,
                **(self._draws(context.state.key) if draws else {}),
            }
            sent |= {
                "sites": {"address": self.addresses, "version": context.version.astype(np.int32)},
                **({"first": self.first} if new else {}),
            }
            if context.needed is not None and jax.tree.leaves(self.first):
                header_fields |= self.recovery.fields(context.needed)
            if draws and self.recovery.oldest is not None:
                header_fields[OLDEST] = self.recovery.oldest
        if self.prepared:
            sent[PREPARED] = self.prepared
        header, request = self._signed(kind, number, e, header_fields, sent)
        entry: dict[str, Scalar] = {
            "kind": kind,
            "exchange": e,
            "bytes": len(request),
            "digest": header.digest,
        }
        entry |= {name: header_fields[name] for name in (TRAIN_SECONDS,) if name in header_fields}
        self._record(COORDINATOR, "asked", number, entry | {"config": self.config} | in_lines("names", to))
        return request

    def part(self, header: Header, digest: str, part: int) -> Bytes:
        """The signed request for one part of the reply with this digest, to the request with this header."""
        return self.concerning(header, "part", {"of": digest, "part": part}, {})

    def concerning(
        self, header: Header, kind: str, fields: Mapping[str, Scalar], sent: Mapping[str, Any]
    ) -> Bytes:
        """A signed request about another one, with this header, which the audit log records."""
        return self._signed(kind, header.round, header.exchange, fields, sent)[1]

    def noise(self, state: State, e: int) -> np.ndarray:
        """The words of a secret key for the server's noise in exchange `e`; the same if the exchange is
        repeated."""
        words = str(self._draws(state.key)["key"])
        return secret_words(
            self._secret, f"{self.run}/{self.config}/{int(state.round)}/{e}/{words}", len(words) // 8
        )

    def _draws(self, key: Key) -> dict[str, Scalar]:
        """The fields of a request with the run's key."""
        if self._drawn is None or self._drawn[0] is not key:
            words = np.asarray(jax.random.key_data(key)).astype("<u4")
            self._drawn = key, {"key": words.tobytes().hex(), "key_kind": str(jax.random.key_impl(key))}
        return self._drawn[1]

    def _signed(
        self, kind: str, number: int, e: int, fields: Mapping[str, Scalar], sent: Mapping[str, Any]
    ) -> tuple[Header, Bytes]:
        self._sequence = max(time.time_ns(), self._sequence + 1)
        header = Header(
            kind=kind, run=self.run, round=number, exchange=e, sender=COORDINATOR, recipient=SITES, sequence=self._sequence,
            created_unix_ms=int(time.time() * 1000), config=self.config, fields=dict(fields),
            head=UNSET if (head := self.head()) is None else head,
        )  # fmt: skip
        return encode_both(header, to_tensors(sent), self._key)


class Draws(NamedTuple):
    """The ingredients of one client's key in one round."""

    words: np.ndarray  # uint32, of the run's key
    round: np.int32
    address: np.ndarray  # [2] uint32, the client's
    secret: np.ndarray  # uint32, as many words, known to the client alone
    kind: str
    name: str = ""  # identifies a secret draw without disclosing it

    def run_key(self) -> Any:
        """The run's key."""
        return jax.random.wrap_key_data(jax.numpy.asarray(self.words), impl=self.kind)

    def key(self, secret: bool = False) -> Any:
        """The client's key; with `secret`, the one that only the client knows."""
        return _client_key(self.secret if secret else self.words, self.round, self.address, self.kind)


def draws(header: Header, address: np.ndarray, secret: bytes, of: str) -> Draws:
    """The draws of the client at this address in this round; the run's key is public, so that a simulation
    draws the same.

    What is drawn by `secret` is the site's own. It is the same for a repeated request, so that nobody sees
    one update under two noises. It depends on the request and on all else that the update depends on (`of`),
    so that nobody sees two updates under one noise."""
    text, kind = header.fields.get("key"), header.fields.get("key_kind")
    if not isinstance(text, str) or not isinstance(kind, str):
        raise BadRequest("the request has no key for the draws of this round")
    try:
        words = _words(text, kind)
        place = f"{header.run}/{header.round}/{header.exchange}/{header.digest}/{text}/{of}"
        name = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
        return Draws(
            words, np.int32(header.round), address, secret_words(secret, place, len(words)), kind, name
        )
    except (ValueError, TypeError, KeyError):
        raise BadRequest("the key for the draws of this round is not of a kind that is known here") from None


def secret_words(secret: bytes, what: str, count: int) -> np.ndarray:
    """[count] uint32, at most 16, from keyed BLAKE2b (1 us): the same for the same secret and `what`, and
    unpredictable without the secret."""
    return np.frombuffer(hashlib.blake2b(what.encode(), key=secret).digest(), "<u4")[:count]


@lru_cache(maxsize=64)
def _words(text: str, kind: str) -> np.ndarray:
    """The run's key as uint32 words, cached; raises if their count does not fit the key's implementation."""
    words = np.frombuffer(bytes.fromhex(text), "<u4")
    jax.eval_shape(partial(jax.random.wrap_key_data, impl=kind), jax.ShapeDtypeStruct(words.shape, np.uint32))
    return words


def client_key(words: Array, round: Array, address: Array, kind: str) -> Key:
    """The key of `Draws`, for compiled code."""
    return keys.client(jax.random.wrap_key_data(words, impl=kind), round, address)


_client_key = jax.jit(client_key, static_argnums=3)


def count(header: Header, name: str) -> int:
    """The field of this name, checked to be a count."""
    value = header.fields.get(name)
    if type(value) is not int or not 0 < value <= _MOST:
        raise BadRequest(f"the request needs the field {name!r}, a count")
    return value


def train_seconds(header: Header) -> float | None:
    """The site's time limit for training; None: as long as it needs."""
    value = header.fields.get(TRAIN_SECONDS)
    if value is not None and not (type(value) is float and 0 < value < math.inf):
        raise BadRequest(f"the field {TRAIN_SECONDS!r} of the request should be a number of seconds above 0")
    return value


def about_sites(sites: int, first: Any) -> dict[str, Any]:
    """The shapes common to all requests about a run: the list of sites, and `first` (its shapes; None: not
    there)."""
    listed = {"address": np.empty((sites, 2), np.uint32), "version": np.empty(sites, np.int32)}
    return {"sites": listed, **({} if first is None else {"first": first})}


def has_first(header: Header) -> bool:
    """Whether the request contains the initial own state of a site."""
    return header.fields.get("first") is True


def needed(header: Header, body: Mapping[str, Any], address: np.ndarray) -> tuple[set[int], int]:
    """(the versions of the site's own state that may be asked for again, how many others it keeps)."""
    if NEEDED not in header.fields:
        return set(), RECENT
    names, recent = [NEEDED], header.fields.get(RECENT_FIELD)
    while (more := f"{NEEDED}.{len(names) + 1}") in header.fields:
        names.append(more)
    try:
        rows = np.frombuffer(
            bytes.fromhex("".join(str(header.fields[name]) for name in names)), "<i4"
        ).reshape(-1, count(header, "sites"))
    except ValueError:
        raise BadRequest(f"the field {NEEDED!r} of the request does not list versions of all sites") from None
    if type(recent) is not int or not 0 <= recent <= RECENT:
        raise BadRequest(f"the field {RECENT_FIELD!r} of the request should be a count of at most {RECENT}")
    return set(rows[:, position(body, address)].tolist()), recent


def may_come_again(known: Mapping[str, T], request: Header) -> dict[str, T]:
    """The entries, by place "run/round/...", that the request says may be asked for again, and the last 64 of
    the others."""
    oldest = request.fields.get(OLDEST)

    def again(where: str) -> bool:
        run, _, rest = where.partition("/")
        number = rest.partition("/")[0]
        return type(oldest) is int and run == request.run and number.isdecimal() and int(number) >= oldest

    these = [where for where in known if again(where)][-_MOST_KNOWN:]
    stay = {*these, *[where for where in known if not again(where)][-_LAST:]}
    return {where: one for where, one in known.items() if where in stay}


def version(body: Mapping[str, Any], address: np.ndarray) -> int:
    """The version of its own state that the site begins from: that after its last report that counted."""
    return int(body["sites"]["version"][position(body, address)])


def position(body: Mapping[str, Any], address: np.ndarray) -> int:
    """The position of the site among all of the run, as a client."""
    return _position(body["sites"]["address"].tobytes(), address.tobytes())


@lru_cache(maxsize=4)
def _position(addresses: bytes, own: bytes) -> int:
    """The position of one address among all; cached, as a run has the same ones in every request."""
    # Each address, two words, is compared as one number.
    (matches,) = (np.frombuffer(addresses, np.uint64) == np.frombuffer(own, np.uint64)).nonzero()
    if len(matches) != 1:
        raise NotInCohort(
            "the request does not list this site once; the names of sites must be those of their files"
        )
    return int(matches[0])
