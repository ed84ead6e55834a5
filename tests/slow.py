"""Which slow tests run beside the others: all of them (`--slow`), or those of what changed since a commit
(`--since`).

Long tests (`tests/long.txt`, which `tests/long.py` writes) are none of them: they run with `--long`, and
wherever the slow ones of their folder do.

A change in fedjax_core/X or tests/X is one of tests/X. What all backends have in common, and what they are
held to, changes the contracts too: the tests that lie in tests/ itself. Where git does not know the commit,
as in a shallow clone, everything changed."""

import random
import subprocess
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

LONG_LIST = Path(__file__).with_name("long.txt")
CONTRACTS = "contracts"  # stands for the test files in tests/ itself
# Parts of the package that no contract test goes through.
OUTER = {"cli", "clinical", "cluster", "consortium", "disclosure", "run", "sites", "testbed"}
DAY_SECONDS = 24 * 3600
EVERYTHING = {"pyproject.toml", "constraints.txt", "tests/conftest.py"}


def long_tests() -> frozenset[str]:
    """The tests that were measured to take long, by their names as pytest has them."""
    return frozenset(LONG_LIST.read_text().splitlines())


def changed_paths(since: str, repository: Path) -> list[str] | None:
    """Files that differ from a commit, the old names of moved ones among them; None where git cannot tell.

    "yesterday" is the newest commit that is at least a day older than the present one: a landing is many
    commits, of a few hours."""
    if since == "yesterday":
        now = git(repository, "log", "-1", "--format=%ct")
        since = (
            git(repository, "rev-list", "-1", f"--min-age={int(now) - DAY_SECONDS}", "HEAD") if now else None
        ) or "yesterday"
    found = git(repository, "diff", "--name-only", "--no-renames", since, "--")
    return None if found is None else found.splitlines()


def git(repository: Path, *arguments: str) -> str | None:
    """What git says; None where it fails, or is not there."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=repository, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def folders(paths: Iterable[str], tests: set[str]) -> set[str]:
    """The folders, of `tests` and the contracts, whose slow tests these changed files ask for."""
    found: set[str] = set()
    for path in paths:
        if path in EVERYTHING:
            return tests | {CONTRACTS}
        top, *rest = PurePosixPath(path).parts
        if top == "fedjax_core" and rest:
            part = rest[0].removesuffix(".py")
            found |= {part} if part in OUTER else {part, CONTRACTS}
        elif top == "tests" and rest:
            found.add(rest[0] if len(rest) > 1 else CONTRACTS)
        elif top in ("scripts", "experiments"):
            found.add(top)
    return found & (tests | {CONTRACTS})


def folder_of(test: Path, repository: Path) -> str:
    """The folder below tests/ in which a test file lies; the contracts' for one in tests/ itself and for
    doctests."""
    parts = test.relative_to(repository).parts
    return parts[1] if parts[0] == "tests" and len(parts) > 2 else CONTRACTS


def in_turn(files: Iterable[str], repository: Path) -> dict[str, int]:
    """A place for each file, drawn by the commit: whatever time leaves out of one landing, others run."""
    order = sorted(set(files))
    random.Random(git(repository, "rev-parse", "HEAD")).shuffle(order)
    return {file: place for place, file in enumerate(order)}
