"""Verifies that an audit log is as it was written, from its first entry or from its owner's signed anchor on.

    line_0 ◄─ prev ─ line_1 ◄─ prev ─ ... line_n        each signed; heads that others hold must be among them

A chain cannot show that its end was cut off, nor that its owner, who has the key, rewrote all of it. For that
somebody else holds its head, and it is compared here.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedjax_core.files import sync_folder, write_whole
from fedjax_core.sites.audit.entries import (
    CUT,
    NOTHING,
    PATTERN,
    PURPOSE,
    AuditError,
    Head,
    digest,
    files,
    lines,
    read,
    show,
)
from fedjax_core.sites.audit.held import FILE as HEADS
from fedjax_core.sites.audit.held import HELD, Heads, Held
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import dumps, loads
from fedjax_core.sites.wire.identity import PublicKey, SiteKey

_ANCHOR = "anchor.json"


def verify(
    folder: str | os.PathLike[str],
    keys: Iterable[PublicKey],
    head: Head | None = None,
    *,
    held: Mapping[str, Iterable[Head]] | None = None,
) -> Head:
    """Verifies every line, and returns the log's head; raises `AuditError` with the first wrong place.

    `keys`: those that may have signed, former ones included. The log must lead to the `head` that was
    exported before, to the heads that others `held`, by their names, and to the one in its file of heads.
    Without any of these, nobody can tell what was cut from its end. If entries were removed on purpose, the
    rest is verified from the signed `Anchor` on."""
    known = set(keys)
    paths, anchor = files(folder), Anchor.read(folder, known)
    if not paths:
        raise AuditError(f"{folder} holds no audit log: there is no file {PATTERN}")
    removed = NOTHING if anchor is None else anchor.head
    if head is not None and (head.n < removed.n or (head.n == removed.n and head != removed)):
        raise AuditError(
            f"the exported head is entry {head.n}, and the entries up to {removed.n} were removed and anchored as {removed}: "
            "compare with a head exported since, or verify where the old ones were archived"
        )
    own, unread = None, None
    try:
        own = Heads.read(folder, known)
    except AuditError as error:  # raised below if nothing is wrong with the entries
        unread = error
    wanted = [("the exported head", head)] if head is not None else []
    wanted += [(f"the head that {name} holds", one) for name, every in (held or {}).items() for one in every]
    wanted += [(f"the head in its {HEADS}", own.own)] if own is not None else []
    expected: dict[int, list[tuple[str, Head]]] = {}
    for whose, one in wanted:
        if one.n == removed.n and one != removed:
            raise AuditError(
                f"{folder} is anchored at entry {one.n}, but not the one that {whose} names: the log was written anew"
            )
        expected.setdefault(one.n, []).append((whose, one))
    last: Head | None = None
    for where, line in lines(paths):
        entry = read(line, where, known)
        # A removal that was interrupted leaves more entries than it should; they must lead to the anchor.
        if last is None:
            last = (
                Head(entry.n - 1, entry.prev)
                if 0 < entry.n <= removed.n
                else NOTHING
                if entry.n == 0
                else removed
            )
        if entry.n != last.n + 1:
            missing = (
                f"entries {last.n + 1} to {entry.n - 1} are missing"
                if entry.n > last.n
                else "an entry was moved or repeated"
            )
            raise AuditError(f"{where} is entry {entry.n}, and entry {last.n + 1} should be there: {missing}")
        if entry.prev != last.digest:
            raise AuditError(
                f"{where} does not follow from the entry before it, number {last.n}, which was replaced by another"
            )
        last = Head(entry.n, digest(line))
        if entry.n == removed.n and last != removed:
            raise AuditError(
                f"{where} is entry {removed.n}, but not the one that the anchor names: the log was written anew"
            )
        for whose, one in expected.get(entry.n, ()):
            if last != one:
                raise AuditError(
                    f"{where} is entry {one.n}, but not the one that {whose} names: the log was written anew"
                )
        if entry.what == CUT:
            raise AuditError(
                f"{where} says that {entry.about.get('entries')} entries are missing before it, of those up to {entry.about.get('head')}"
            )
    last = removed if last is None else last
    if last.n < removed.n:
        raise AuditError(
            f"{paths[-1]} ends with entry {last.n}, before entry {removed.n}, which the anchor names: entries were cut off"
        )
    for whose, one in wanted:
        if one.n > last.n:
            raise AuditError(
                f"{paths[-1]} ends with entry {last.n}, but {whose} is entry {one.n}: {one.n - last.n} entries were cut off"
            )
    if unread is not None:
        raise unread
    return last


def held_by(
    folder: str | os.PathLike[str], keys: Iterable[PublicKey], owner: str, runs: Collection[str] | None = None
) -> list[Head]:
    """All heads of the owner's log that another end's log, in this folder, recorded, the newest last.

    The log in the folder is verified first, with these keys. The heads are in its entries about the owner's
    messages, and the newest in its file of heads. `runs`: only the heads of these runs, for an owner with
    several logs.
    """
    known = set(keys)
    verify(folder, known)
    heads = Heads.read(folder, known)
    every = [] if heads is None or owner not in heads.held else [heads.held[owner]]
    every += [
        Held(one.run, 0, Head.parse(str(text)))
        for one in show(folder)
        if (text := one.about.get(f"{HELD}{owner}")) is not None
    ]
    return sorted({held.head for held in every if runs is None or held.run in runs})


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The owner's signed statement that entries up to `head` were removed; verification begins there."""

    head: Head
    time: float  # of the removal, in seconds since 1970
    key: str  # fingerprint of the key that signs

    def write(self, folder: str | os.PathLike[str], key: SiteKey) -> None:
        """Writes the anchor into a log's folder, whole or not at all."""
        body = {"n": self.head.n, "digest": self.head.digest, "time": self.time, "key": self.key}
        write_whole(
            anchor_path(folder),
            dumps({"anchor": body, "signature": key.sign(f"{PURPOSE} anchor", dumps(body)).hex()}),
        )
        sync_folder(Path(folder))

    @classmethod
    def read(cls, folder: str | os.PathLike[str], keys: Iterable[PublicKey]) -> "Anchor | None":
        """Reads the anchor of a log, if there is one; raises `AuditError` if none of the keys signed it."""
        path = anchor_path(folder)
        if not path.exists():
            return None
        try:
            document: Any = loads(path.read_bytes(), "the anchor")
            body, signature = document["anchor"], bytes.fromhex(document["signature"])
            anchor = cls(
                head=Head.parse(f"{body['n']}:{body['digest']}"),
                time=float(body["time"]),
                key=str(body["key"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise AuditError(
                f"{path} was edited or damaged: {error if isinstance(error, Refused) else 'it is no anchor'}"
            ) from None
        if not any(
            key.fingerprint == anchor.key and key.fits(f"{PURPOSE} anchor", dumps(body), signature)
            for key in keys
        ):
            raise AuditError(
                f"{path} is not signed with a key of those given: entries were removed by somebody else, or it was edited"
            )
        return anchor


def anchor_path(folder: str | os.PathLike[str]) -> Path:
    """The path of a log's anchor."""
    return Path(folder) / _ANCHOR
