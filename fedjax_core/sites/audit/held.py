"""The heads of logs that one end of a federation holds: of its own log, and of the logs of those who write to
it.

    audit/heads.json    {"heads": {"held": {"coordinator": {"head": "40:3c...", "message": 17, "run": "heart-1"}}, "key": "...",
                         "own": "17:9f..."}, "signature": "..."}

Every message has its sender's head in it (envelope.py). So each end knows what the other's log led to, and
nobody can cut entries off a log, or write it anew, without changing it at both ends. The own head tells
whoever opens the log again that entries were cut off since. It is written at most once a second, after the
entry that it names is on the disk: so a crash may leave it older than the log, and never newer. Whoever has
several logs, in several folders, has a run in one of them: so heads are compared within a run.

A head says how many entries a log has, and nothing of what is in them: its digest is of a line with a
signature in it, which nobody but the log's owner can make, so contents cannot be tried.

>>> import tempfile
>>> folder, key = tempfile.TemporaryDirectory(), SiteKey.make("charite")
>>> heads = Heads(Head(17, "9f" * 32), {"coordinator": Held("heart-1", 17, Head(40, "3c" * 32))})
>>> _ = (Path(folder.name) / FILE).write_bytes(heads.signed(key))
>>> Heads.read(folder.name, [key.public]) == heads
True
>>> folder.cleanup()
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_core.sites.audit.entries import PURPOSE, AuditError, Head
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import dumps, loads
from fedjax_core.sites.wire.identity import PublicKey, SiteKey

FILE, HELD = "heads.json", "head."
"""The file beside a log; and what the names of an entry's values begin with that are another's head, such as
`head.coordinator`."""


class Held(NamedTuple):
    """Another's head, as a message of this run brought it: the newest that came, as messages may overtake one
    another."""

    run: str
    message: int  # its sequence number
    head: Head


@dataclass(frozen=True)
class Heads:
    """What one end holds."""

    own: Head
    held: Mapping[str, Held] = field(default_factory=dict)
    """The newest of each other end, by its name."""

    def signed(self, key: SiteKey) -> bytes:
        """The file's text, signed by the log's owner."""
        held = {
            name: {"head": str(one.head), "message": one.message, "run": one.run}
            for name, one in self.held.items()
        }
        body = {"own": str(self.own), "held": held, "key": key.public.fingerprint}
        return dumps({"heads": body, "signature": key.sign(f"{PURPOSE} heads", dumps(body)).hex()})

    @classmethod
    def read(cls, folder: str | os.PathLike[str], keys: Iterable[PublicKey]) -> "Heads | None":
        """What the file beside a log says, None where there is none; raises `AuditError` where none of the
        keys signed it."""
        path = Path(folder) / FILE
        if not path.exists():
            return None
        try:
            document: Any = loads(path.read_bytes(), "the file", levels=4)
            body, signature = document["heads"], bytes.fromhex(document["signature"])
            held = {
                str(name): Held(str(one["run"]), int(one["message"]), Head.parse(one["head"]))
                for name, one in body["held"].items()
            }
            heads = cls(Head.parse(body["own"]), held)
            signer = str(body["key"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise AuditError(
                f"{path} was edited or damaged: {error if isinstance(error, Refused) else 'it holds no heads'}"
            ) from None
        if not any(
            key.fingerprint == signer and key.fits(f"{PURPOSE} heads", dumps(body), signature) for key in keys
        ):
            raise AuditError(
                f"{path} is not signed with a key of those given: it was written by somebody else, or edited"
            )
        return heads
