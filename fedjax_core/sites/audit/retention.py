"""Retention: removes old entries from an audit log so that the rest can still be verified.

    anchor.json     {"anchor": {"n": 811, "digest": "<SHA-256 of line 811>", "time": ..., "key": ...}, "signature": "..."}

The owner of a log signs an anchor that names the last entry to remove, and records the removal in the log
itself. Only then are lines removed, into an archive or for good. `verify` begins at the anchor: entry 812
must name the line that the anchor names. If a crash interrupts a removal, the remaining lines must lead to
the anchor, and the next removal completes it. Moved files keep their names, so an archive of all removals is
a log that verifies, with the anchor as its head.

>>> import tempfile
>>> from fedjax_core.sites.audit import show, verify
>>> from fedjax_core.sites.wire.identity import SiteKey
>>> folder, key = tempfile.TemporaryDirectory(), SiteKey.make("charite")
>>> with Log(folder.name, key) as log:
...     for round in range(5):
...         log.record("charite", "trained", round=round)
...     anchor = prune(log, before=time.time())
>>> anchor.head.n, [(entry.n, entry.what) for entry in show(folder.name)]
(3, [(4, 'trained'), (5, 'pruned')])
>>> verify(folder.name, [key.public]).n
5
>>> folder.cleanup()
"""

import time
from pathlib import Path

from fedjax_core.files import make_folder, write_whole
from fedjax_core.sites.audit.entries import AuditError, Head, files, head_of, heads, show
from fedjax_core.sites.audit.log import Log
from fedjax_core.sites.audit.proof import Anchor, anchor_path, verify
from fedjax_core.sites.wire.canonical import Scalar, loads


def prune(log: Log, *, before: float, archive: Path | None = None) -> Anchor | None:
    """Removes the entries from before a time (seconds since 1970): the new anchor, or None without any.

    The last entry always stays. With an `archive`, a folder for this log alone, lines are moved there; else
    they are deleted. Raises `AuditError`, and removes nothing, if the log does not verify or the archive is
    another log's."""
    verify(log.folder, log.keys)
    entries = list(heads(log.folder))
    gone = 0
    while gone < len(entries) - 1 and entries[gone][0] < before:
        gone += 1
    if not gone:
        return None
    if archive is not None:
        first = next(show(log.folder))
        _begin(archive, log.folder, {Head(first.n - 1, first.prev), *(head for _, head in entries[:gone])})
    anchor = Anchor(head=entries[gone - 1][1], time=time.time(), key=log.key.public.fingerprint)
    anchor.write(log.folder, log.key)
    details: dict[str, Scalar] = {
        "upto": anchor.head.n,
        "digest": anchor.head.digest,
        "archived": archive is not None,
    }
    losses = [x for entry in show(log.folder) if isinstance(x := entry.about.get("told"), int | float)]
    # The privacy loss so far must survive the pruning (privacy_ledger.py).
    log.record(log.key.name, "pruned", about=details | ({"told": max(losses)} if losses else {}))
    log.rest()
    for path in files(log.folder):
        lines = path.read_bytes().splitlines(keepends=True)
        old = [line for line in lines if loads(line[:-1])["entry"]["n"] <= anchor.head.n]
        if old and archive is not None:
            there = (
                (archive / path.name).read_bytes().splitlines(keepends=True)
                if (archive / path.name).exists()
                else []
            )
            write_whole(
                archive / path.name, b"".join([*there, *(line for line in old if line not in set(there))])
            )
        if old and len(old) < len(lines):
            write_whole(path, b"".join(lines[len(old) :]))
        elif old:
            path.unlink()
    return anchor


def _begin(archive: Path, folder: Path, ends: set[Head]) -> None:
    """Makes the archive, or checks that it ends with one of these entries, so that the next lines continue
    it."""
    make_folder(archive)
    if not files(archive):
        if anchor_path(folder).exists():
            write_whole(anchor_path(archive), anchor_path(folder).read_bytes())
    elif (there := head_of(archive)) not in ends:
        raise AuditError(
            f"{archive} ends with entry {there.n} of another log, or entries after it are gone: give a folder of its own"
        )
