"""The command line: `fedjax-core consortium ...`, `doctor`, `keys ...`, `certificates ...` and `audit ...`.

    fedjax-core consortium run                          a coordinator and three hospitals as processes of this machine: try this first
    fedjax-core doctor site.toml                        is this site ready to join? what is to be done, and 1 where something is
    fedjax-core keys make charite --folder keys          keys/charite.key stays; keys/charite.pub goes to the coordinator
    fedjax-core keys show keys/charite.pub               its line for the roster, and the fingerprint to compare by telephone
    fedjax-core certificates make tls charite=ray.charite.example,10.1.2.3      what Ray's TLS and token need there, in tls/charite
    fedjax-core certificates show tls/charite                                   for whom, and until when
    fedjax-core audit head logs                          the line to give to somebody else now and then
    fedjax-core audit verify logs --keys roster.toml --head 17:9f...
    fedjax-core audit show logs --what left              the ledger of what left this site
    fedjax-core audit prune logs --key keys/charite.key --before 2020-01-01 --archive old-logs

Every command ends with 0 where all is well, with 1 where something is not, which it says on standard error, and with 2 where it
was not understood.

>>> main(["audit", "head", "/nowhere"])
1
"""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from fedjax_core.consortium import box
from fedjax_core.sites import audit, certificates, identity, ray_security, retention
from fedjax_core.sites import doctor as examination
from fedjax_core.sites.base import check_name, dumps

_app, _consortium, _keys, _certificates, _audit = (SubcommandApp() for _ in range(5))
_app.command(_consortium, name="consortium", help="A coordinator and its sites on this machine: try this first.")
_app.command(_keys, name="keys", help="Make a site's key, and show its public half.")
_app.command(_certificates, name="certificates", help="Make and show what protects Ray: TLS certificates and a token.")
_app.command(_audit, name="audit", help="Read audit logs, and prove that nobody changed them.")


@_consortium.command(name="run")
def run_consortium(
    folder: Positional[Path] = Path("runs/consortium"),
    sites: int | None = None,
    site_files: Path | None = None,
    study: str | None = None,
    arguments: str | None = None,
    rounds: int | None = None,
    quorum: int | None = None,
    checkpoint_every: int | None = None,
) -> None:
    """Starts a coordinator and sites as processes of this machine, each with its own key, data, Ray node and certificate; runs a study
    over them, and stops them. In a folder that is there it goes on where it was.

    Args:
        folder: Where everything is kept, as it would be on real machines.
        sites: So many made-up hospitals with breast-cancer records (3).
        site_files: Or sites of your own: a folder with a file NAME.toml each, which has at least name and data.
        study: For them: module:function, that returns a fedjax_core.sites.study.Study.
        arguments: Of the function, as JSON.
        rounds: So many in all (20).
        quorum: So many sites must report for a round to count; by default more than half.
        checkpoint_every: So many rounds (5).
    """
    given = None if arguments is None else json.loads(arguments)
    try:
        result = box.run(
            folder, sites=sites, site_files=site_files, study=study, arguments=given, rounds=rounds, quorum=quorum,
            checkpoint_every=checkpoint_every, say=lambda line: print(line, flush=True),
        )  # fmt: skip
    except KeyboardInterrupt:
        raise RuntimeError(f"stopped; `fedjax-core consortium run {folder}` goes on from here") from None
    Console().print(box.table(result))
    print(f"Look around in {folder}: sites/*/site.toml and policy.toml say what a site does and lets out; this shows what left one:")
    print(f"  fedjax-core audit show {folder}/sites/{next(iter(result.sites))}/state/audit --what left")


@_app.command
def doctor(
    path: Positional[Path],
    address: str | None = None,
    now: float | None = None,
    offset_seconds: float = 60.0,
    free_gb: float = 2.0,
    memory_gb: float = 1.0,
) -> None:
    """Examines a site before it joins, and says what is to be done; expected.toml and ray/ beside its file are used where they are there.

    Args:
        path: The site's file.
        address: host:port of the coordinator's Ray.
        now: The right time, in seconds since 1970, as `date +%s` says at the coordinator.
        offset_seconds: So far the site's clock may be off.
        free_gb: So much disk must be free.
        memory_gb: So much memory must be free.
    """
    asked = examination.Settings(address=address, now=now, offset_seconds=offset_seconds, free_gb=free_gb, memory_gb=memory_gb)
    found = examination.examine(path, examination.beside(path, asked))
    for one in found:
        print(f"{'-' if one.fine is None else 'ok' if one.fine else 'NO':3}{one.what:12}{one.said}")
    if wrong := [one.what for one in found if one.fine is False]:
        raise RuntimeError(f"{path}: not ready to join, for {', '.join(wrong)} (see NO above)")
    print(f"{path}: ready to join.")


@_keys.command
def make(name: Positional[str], folder: Path = Path(".")) -> None:
    """Makes a site's key: FOLDER/NAME.key, which never leaves the site, and FOLDER/NAME.pub, whose line goes into the roster.

    Args:
        name: What the site is called by everybody.
        folder: Where the two files go.
    """
    key = identity.SiteKey.make(name)
    path = key.save(folder)
    print(f"{path} is private: back it up, and let it never leave this site.")
    print(f"{path.with_suffix('.pub')} is public: send it to the coordinator, and compare the fingerprint by telephone.")
    _show(name, key.public)


@_keys.command(name="show")
def show_key(path: Positional[Path]) -> None:
    """Shows the public half of a .key or .pub file.

    Args:
        path: The file.
    """
    if path.suffix == ".key":
        key = identity.SiteKey.load(path)
        _show(key.name, key.public)
    else:
        _show(*identity.read_public(path))


@_certificates.command(name="make")
def make_certificates(folder: Positional[Path], nodes: Positional[tuple[str, ...]], days: int = 365) -> None:
    """Makes a certificate, its key and a copy of the token for each machine, in FOLDER/NAME; the authority too, where there is none.

    Args:
        folder: Where all of it goes; FOLDER/authority stays with whoever makes certificates.
        nodes: Each machine as NAME=HOST or NAME=HOST,HOST: the names and addresses by which the others reach it.
        days: How long the certificates are valid.
    """
    hosts = {}
    for text in nodes:
        name, equals, rest = text.partition("=")
        if not (equals and rest):
            raise ValueError(f"{text!r} should read NAME=HOST or NAME=HOST,HOST, such as charite=ray.charite.example,10.1.2.3")
        hosts[check_name(name, "the machine")] = rest.split(",")
    for name, files in ray_security.equip(folder, hosts, days).items():
        print(f"{files.certificate}: {certificates.describe(files.certificate)}")
        print(f"  copy {files.certificate.parent} to {name} by a way that nobody else can read, and have Ray start there with")
        print("".join(f"  {key}={value}\n" for key, value in ray_security.environment(files.certificate.parent).items()), end="")
    print(f"{folder / 'authority'} lets anybody in: keep it where only you can read it.")


@_certificates.command(name="show")
def show_certificates(paths: Positional[tuple[Path, ...]]) -> None:
    """Shows for whom certificates are and until when; of a machine's folder, whether all in it fits.

    Args:
        paths: Certificates, or folders as `certificates make` writes them.
    """
    for path in paths:
        if path.is_dir():
            found = ray_security.lacking(ray_security.environment(path))
            if found:
                raise ValueError(f"{path} lacks {' and '.join(found)}")
        print(f"{path}: {certificates.describe(path / 'node.crt' if path.is_dir() else path)}")


@_audit.command
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


@_audit.command
def show(
    folder: Positional[Path], who: str | None = None, what: str | None = None, run: str | None = None, round: int | None = None
) -> None:
    """Shows the entries of a log, oldest first.

    Args:
        folder: The log's folder.
        who: Only what this site or person did.
        what: Only this kind of event; `left` is the ledger of what left the site.
        run: Only of this run.
        round: Only of this round.
    """
    for entry in audit.show(folder, who=who, what=what, run=run, round=round):
        when = _when(entry.time)
        where = f"{entry.run or '-'}/{'-' if entry.round is None else entry.round}"
        print(f"{entry.n} {when} {entry.who} {entry.what} {where} {dumps(dict(entry.about)).decode()}")


@_audit.command
def head(folder: Positional[Path]) -> None:
    """Prints the head of a log, to be kept by somebody else.

    Args:
        folder: The log's folder.
    """
    print(audit.head_of(folder))


@_audit.command
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


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command, and returns its exit code."""
    try:
        _app.cli(prog="fedjax-core", description="Federated learning between sites.", args=args)
    except (audit.AuditError, OSError, ValueError, RuntimeError) as error:
        print(f"fedjax-core: {error}", file=sys.stderr)
        return 1
    return 0


def _when(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")


def _show(name: str, key: identity.PublicKey) -> None:
    print(f'{name} = "{key.text}"')
    print(f"fingerprint {key.fingerprint}")


def _read_keys(path: Path) -> list[identity.PublicKey]:
    if path.suffix == ".toml":
        roster = identity.Roster.read(path)
        return [*roster.keys.values(), *roster.revoked]
    return [identity.read_public(path)[1]]
