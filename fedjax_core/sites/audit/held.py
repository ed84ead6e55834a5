"""The log heads that one end of a federation holds: of its own log, and of the logs of its correspondents.

    audit/heads.json    {"heads": {"held": {"coordinator": {"head": "40:3c...", "message": 17, "run": "heart-1"}}, "key": "...",
                         "own": "17:9f..."}, "signature": "..."}

Every message contains its sender's head (envelope.py), so each end knows where the other's log had led.
Nobody can cut entries off a log, or rewrite it, without changing it at both ends. The own head shows, when a
log is opened again, that entries were cut off since. It is written at most every five seconds, after the
entry that it names is on the disk: a crash may leave it older than the log, never newer. An owner with
several logs, in several folders, keeps a run in one of them, so heads are compared within a run.

A head discloses the number of entries and nothing of their contents: its digest covers a signature that only
the log's owner can make, so contents cannot be guessed and tested.

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
"""The file beside a log, and the prefix of an entry's values that are another log's head, such as
`head.coordinator`."""


class Held(NamedTuple):
    """The newest head of another log that a message of this run brought; messages may overtake one
    another."""

    run: str
    message: int  # its sequence number
    head: Head


@dataclass(frozen=True)
class Heads:
    """All heads that one end holds."""

    own: Head
    held: Mapping[str, Held] = field(default_factory=dict)
    """The newest head of each other end, by its name."""

    def signed(self, key: SiteKey) -> bytes:
        """The text of the file, signed by the log's owner."""
        held = {
            name: {"head": str(one.head), "message": one.message, "run": one.run}
            for name, one in self.held.items()
        }
        body = {"own": str(self.own), "held": held, "key": key.public.fingerprint}
        return dumps({"heads": body, "signature": key.sign(f"{PURPOSE} heads", dumps(body)).hex()})

    @classmethod
    def read(cls, folder: str | os.PathLike[str], keys: Iterable[PublicKey]) -> "Heads | None":
        """Reads the file beside a log, if there is one; raises `AuditError` if none of the keys signed it."""
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
