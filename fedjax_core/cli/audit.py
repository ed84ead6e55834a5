"""`fedjax-core audit ...`: reads, proves and prunes an audit log."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from fedjax_core.sites import audit
from fedjax_core.sites.audit import retention
from fedjax_core.sites.audit.entries import NUMBERS, SENT, files, last_line, parse
from fedjax_core.sites.audit.held import HELD
from fedjax_core.sites.refusal import shown
from fedjax_core.sites.wire import identity
from fedjax_core.sites.wire.canonical import Scalar, dumps

app = SubcommandApp()


@app.command
def verify(
    folder: Positional[Path], keys: tuple[Path, ...], head: str | None = None, held_by: tuple[Path, ...] = ()
) -> None:
    """Proves that no entry of a log was changed, or says where one was; with a head from elsewhere, also that
    none is missing.

    Args:
        folder: The log's folder.
        keys: The .pub files of the log's writer, former ones too, or a roster's .toml; with --held-by, those
            of the other end as well.
        head: What `audit head` printed before: finds entries cut off since, and a log written anew.
        held_by: The log's folder of the other end, which holds the head that came with this one's last
            message.
    """
    known = [one for path in keys for one in _read_keys(path)]
    public = [key for _, key in known]
    held: dict[str, list[audit.Head]] = {}
    for other in held_by:
        owner, holder = (_owner(one, known) for one in (folder, other))
        held[holder] = audit.held_by(other, public, owner, {entry.run for entry in audit.show(folder)})
        if not held[holder]:
            raise ValueError(
                f"{other}, the log of {holder}, has no head of the log of {owner}: no message of that came with one"
            )
    newest = audit.verify(folder, public, audit.Head.parse(head) if head else None, held=held)
    anchor = audit.Anchor.read(folder, public)
    first = 0 if anchor is None else anchor.head.n + 1
    among = ["the exported head"] if head else []
    among += [f"the head that {name} holds (entry {every[-1].n})" for name, every in held.items()]
    if among:
        print(
            f"{folder}: {newest.n + 1 - first} entries, all as they were written, and {', '.join(among)} is among them."
        )
    else:
        print(
            f"{folder}: {newest.n + 1 - first} entries, none of which was changed, moved, or taken from between others."
        )
        print(
            "Whether entries are missing at the end cannot be told by the log alone: give --head as `audit head` printed it before, or"
        )
        print(
            "--held-by with the log's folder of the other end (at the coordinator: `audit head FOLDER --of SITE` prints what it holds)."
        )
    if anchor is not None:
        print(
            f"proven from entry {first} on: those before it were removed {_when(anchor.time)}, the last of them {anchor.head}"
        )
    print(f"head {newest}")


@app.command
def show(
    folder: Positional[Path],
    keys: tuple[Path, ...] = (),
    who: str | None = None,
    what: str | None = None,
    run: str | None = None,
    round: int | None = None,
    site: str | None = None,
    raw: bool = False,
) -> None:
    """Shows the entries of a log, oldest first: when, who did what, in which run and round; for data that
    left, to whom, how many numbers, and the epsilon of all so far. With keys it proves first that none was
    changed.

    Args:
        folder: The log's folder.
        keys: The .pub files of the log's writer, or a roster's .toml.
        who: Only what this site or person did.
        what: Only this kind of event; `left` is the ledger of what left the site.
        run: Only of this run.
        round: Only of this round.
        site: Only what this site did, and what it was asked, in a coordinator's log.
        raw: Each entry with all that it holds, as JSON.
    """
    if keys:
        audit.verify(folder, [key for path in keys for _, key in _read_keys(path)])
    else:
        print(
            "not verified: give --keys with the .pub file of who wrote it, and it is proven first",
            file=sys.stderr,
        )
    if not raw:
        print(_line("entry", "when (UTC)", "who", "what", "run/round", "to", "numbers", "epsilon", "more"))
    for entry in audit.show(folder, who=who, what=what, run=run, round=round, site=site):
        fields = dict(entry.about)
        where = f"{entry.run or '-'}/{'-' if entry.round is None else entry.round}"
        if raw:
            print(f"{entry.n} {_when(entry.time)} {entry.who} {entry.what} {where} {dumps(fields).decode()}")
            continue
        to, epsilon = fields.pop("recipient", ""), fields.pop("epsilon", "")
        numbers, hidden = (_numbers(fields), _UNSHOWN) if entry.what == "left" else ("", set[str]())
        # Fields of tensors come last, as there may be many.
        values = sorted(fields.items(), key=lambda one: one[0].startswith(NUMBERS))
        more = " ".join(
            f"{name.removeprefix(SENT)}={value}"
            for name, value in values
            if name not in hidden and not name.startswith(HELD)
        )
        spent = f"{epsilon:.4g}" if isinstance(epsilon, float) else epsilon
        print(
            _line(
                entry.n,
                _when(entry.time, "seconds")[:19],
                entry.who,
                entry.what,
                where,
                to,
                numbers,
                spent,
                more,
            )
        )


@app.command
def head(folder: Positional[Path], of: str | None = None) -> None:
    """Prints the head of a log, to be kept by somebody else; or the head of another's log that this log
    holds.

    Args:
        folder: The log's folder.
        of: The name of the other end, such as that of a site: its newest head that came here, for `audit
            verify --head` there.
    """
    if of is None:
        print(audit.head_of(folder))
        return
    every = [
        audit.Head.parse(str(text))
        for entry in audit.show(folder)
        if (text := entry.about.get(f"{HELD}{of}")) is not None
    ]
    if not every:
        raise ValueError(f"{folder} has no head of the log of {shown(of)}: no message of that came with one")
    print(max(every, key=lambda one: one.n))


@app.command
def prune(
    folder: Positional[Path],
    key: Path,
    before: str,
    archive: Path | None = None,
    former: tuple[Path, ...] = (),
) -> None:
    """Removes old entries under a signed anchor, from which `audit verify` proves the rest. Nobody may be
    writing the log.

    Args:
        folder: The log's folder.
        key: The .key file of the log's owner.
        before: A date such as 2020-01-31, in UTC: entries from before it go.
        archive: Move them to this folder, which is a log that can be verified as well. Without it they are
            gone.
        former: The .pub files of keys that the owner had before.
    """
    time = datetime.fromisoformat(before).replace(tzinfo=UTC).timestamp()
    with audit.Log(
        folder, identity.SiteKey.load(key), former=[key for path in former for _, key in _read_keys(path)]
    ) as log:
        anchor = retention.prune(log, before=time, archive=archive)
        if anchor is None:
            print(f"{folder}: no entry is older than {before}.")
        else:
            print(
                f"{folder}: the entries up to {anchor.head} were {'removed' if archive is None else f'moved to {archive}'}."
            )
            print(f"head {log.head}")


_UNSHOWN = {
    "exchange",
    "sequence",
    "bytes",
    "request_bytes",
    "tensors",
    "numbers",
    "digest",
    "fields",
    "decision",
}
"""Fields of what left that only `--raw` shows: the rest is for people."""


def _numbers(entry_fields: Mapping[str, Scalar]) -> int:
    """The count of numbers that left: those in tensors, and fields that are numbers."""
    count = entry_fields.get("numbers", 0)
    fields = sum(
        name.startswith(SENT) and isinstance(value, int | float) for name, value in entry_fields.items()
    )
    return fields + (count if isinstance(count, int) else 0)


def _line(*cells: object) -> str:
    """A line of the table; its last cell may be of any length."""
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


_WIDTHS = (5, 19, 12, 10, 12, 11, 8, 7, 0)


def _when(time: float, to: str = "milliseconds") -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec=to)


def _owner(folder: Path, known: list[tuple[str, identity.PublicKey]]) -> str:
    """The owner of a log: the name of the key, among those given, that signed its last entry."""
    last = last_line(files(folder))
    signer = "" if last is None else parse(last[1], last[0])[0].key
    name = next((name for name, key in known if key.fingerprint == signer), "")
    if not name:
        raise ValueError(
            f"whose log {folder} is cannot be told: --keys lacks the .pub file of who signed its last entry"
        )
    return name


def _read_keys(path: Path) -> list[tuple[str, identity.PublicKey]]:
    """(name, key) of each; a revoked key has no name."""
    if path.suffix == ".toml":
        roster = identity.Roster.read(path)
        return [*roster.keys.items(), *(("", key) for key in roster.revoked)]
    return [identity.read_public(path)]
