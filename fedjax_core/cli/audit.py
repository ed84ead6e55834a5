"""`fedjax-core audit ...`: a log read, proven and pruned."""

from datetime import UTC, datetime
from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from fedjax_core.sites import audit, identity, retention
from fedjax_core.sites.base import dumps

app = SubcommandApp()


@app.command
def verify(folder: Positional[Path], keys: tuple[Path, ...], head: str | None = None) -> None:
    """Proves that a log is as it was written, or says where it is not.

    Args:
        folder: The log's folder.
        keys: The .pub files of who wrote it, former ones too, or a roster's .toml.
        head: What `audit head` printed before: finds entries cut off since, and a log written anew.
    """
    known = [key for path in keys for key in _read_keys(path)]
    found = audit.verify(folder, known, audit.Head.parse(head) if head else None)
    anchor = audit.Anchor.read(folder, known)
    first = 0 if anchor is None else anchor.head.n + 1
    print(
        f"{folder}: {found.n + 1 - first} entries, all as they were written" + (", and the exported head is among them." if head else ".")
    )
    if anchor is not None:
        print(f"proven from entry {first} on: those before it were removed {_when(anchor.time)}, the last of them {anchor.head}")
    print(f"head {found}")


@app.command
def show(
    folder: Positional[Path],
    who: str | None = None,
    what: str | None = None,
    run: str | None = None,
    round: int | None = None,
    site: str | None = None,
) -> None:
    """Shows the entries of a log, oldest first.

    Args:
        folder: The log's folder.
        who: Only what this site or person did.
        what: Only this kind of event; `left` is the ledger of what left the site.
        run: Only of this run.
        round: Only of this round.
        site: Only what this site did, and what it was asked, in a coordinator's log.
    """
    for entry in audit.show(folder, who=who, what=what, run=run, round=round, site=site):
        when = _when(entry.time)
        where = f"{entry.run or '-'}/{'-' if entry.round is None else entry.round}"
        print(f"{entry.n} {when} {entry.who} {entry.what} {where} {dumps(dict(entry.about)).decode()}")


@app.command
def head(folder: Positional[Path]) -> None:
    """Prints the head of a log, to be kept by somebody else.

    Args:
        folder: The log's folder.
    """
    print(audit.head_of(folder))


@app.command
def prune(folder: Positional[Path], key: Path, before: str, archive: Path | None = None, former: tuple[Path, ...] = ()) -> None:
    """Removes old entries under a signed anchor, from which `audit verify` proves the rest. Nobody may be writing the log.

    Args:
        folder: The log's folder.
        key: The .key file of the log's owner.
        before: A date such as 2020-01-31, in UTC: entries from before it go.
        archive: Move them to this folder, which is a log that can be verified as well. Without it they are gone.
        former: The .pub files of keys that the owner had before.
    """
    time = datetime.fromisoformat(before).replace(tzinfo=UTC).timestamp()
    with audit.Log(folder, identity.SiteKey.load(key), former=[one for path in former for one in _read_keys(path)]) as log:
        anchor = retention.prune(log, before=time, archive=archive)
        if anchor is None:
            print(f"{folder}: no entry is older than {before}.")
        else:
            print(f"{folder}: the entries up to {anchor.head} were {'removed' if archive is None else f'moved to {archive}'}.")
            print(f"head {log.head}")


def _when(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")


def _read_keys(path: Path) -> list[identity.PublicKey]:
    if path.suffix == ".toml":
        roster = identity.Roster.read(path)
        return [*roster.keys.values(), *roster.revoked]
    return [identity.read_public(path)[1]]
