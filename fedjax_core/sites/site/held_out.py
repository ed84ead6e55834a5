"""Splits a site's examples by persons into those trained on and those held out for evaluation.

    Study(held_out=0.2)         that share of each site's examples, drawn by the study's seed and the site's name
    person = "patient_id"       in site.toml: a person is on one side only, and nothing trains on the column
    held_out = "test"           in site.toml: the site's own column of truth values, instead of the draw

The training part equals the simulator's `clients.split(1 - 0.2, seed=study.seed, by="patient_id")` of clients
whose ids are the sites' names. A site with departments draws before it is divided, so that no person is on
both sides through two departments.

>>> clients = Clients.from_list([{"x": np.arange(10), "who": np.repeat(np.arange(5), 2)}], ids=["charite"])
>>> marked = mark(clients, SiteFile(name="charite", data=None, person="who"), share=0.2, seed=0)
>>> [one.examples for one in parted(marked)], list(marked.columns)
([8, 2], ['(held out)', '(person)', 'x'])
"""

from hashlib import sha256
from pathlib import Path

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.sites.site_file import SiteFile

HELD_OUT = "(held out)"
"""The temporary column that marks held-out examples."""

PERSON = "(person)"
"""The temporary column with the person of each example: limits on small groups count persons, not rows."""


def mark(clients: Clients, site_file: SiteFile, share: float | None, seed: int) -> Clients:
    """Marks the examples that the study holds out in the column `HELD_OUT`; removes columns that only serve
    this.

    A `share` of None: the study is not known.
    """
    own = tuple(name for name in (site_file.person, site_file.held_out) if name is not None)
    if site_file.person is not None:
        clients = clients.with_columns(
            {**_named(clients, site_file), PERSON: _codes(clients.column_of(site_file.person, "person"))}
        )
    if not share:
        if site_file.held_out is not None and share is not None:
            raise ValueError(
                f"{site_file.name} names held_out = {site_file.held_out!r}, and the study holds nobody out: agree on one with "
                "held_out=0.2, which goes by that column here, or leave it out of the site's file"
            )
        return clients.without(*own)
    whole = Clients(clients.columns, [0, clients.examples], [site_file.name])
    own_column = site_file.held_out
    out = (
        ~whole.drawn(1 - share, seed, by=site_file.person)
        if own_column is None
        else _own_choice(whole, own_column, site_file.person)
    )
    if out.all() or not out.any():
        raise ValueError(
            f"{site_file.name} has too few examples (or persons) for a part of {share:g} of them that is not trained on: none would be "
            f"{'left to train on' if out.all() else 'held out'}; it cannot take part in a study with held_out={share:g}"
        )
    rest = clients.without(*own)
    return rest.with_columns({**_named(rest, site_file), HELD_OUT: out})


def persons_of(clients: Clients) -> np.ndarray | None:
    """[examples trained on] the person of each, as codes; None if the site names no column of persons."""
    whose, out = (clients.named_columns.get(name) for name in (PERSON, HELD_OUT))
    return whose if whose is None or out is None else whose[~out]


def persons_by_values(clients: Clients) -> np.ndarray:
    """[examples] codes for data without a column of persons: each row is a person, recognised by its values.

    Each of several equal rows is a person of its own. A row that comes or goes does not turn the others into
    new persons."""
    codes = np.zeros(clients.examples, np.int64)
    seen: dict[bytes, int] = {}
    leaves = [np.ascontiguousarray(x) for _, x in sorted(clients.named_columns.items())]
    for i in range(clients.examples):
        digest = sha256(b"".join(x[i].tobytes() for x in leaves)).digest()
        seen[digest] = again = seen.get(digest, 0) + 1
        codes[i] = int.from_bytes(sha256(digest + b"%d" % again).digest()[:8], "little", signed=True)
    return codes


def _codes(person: np.ndarray) -> np.ndarray:
    """[examples] int64 codes of the persons' names, independent of the other persons."""
    names, places = np.unique(person, return_inverse=True)
    codes = [
        int.from_bytes(sha256(repr(name).encode()).digest()[:4], "little") >> 1 for name in names.tolist()
    ]
    return np.array(codes, np.int64)[places]


def _named(clients: Clients, site_file: SiteFile) -> dict[str, np.ndarray]:
    if not isinstance(clients.columns, dict):
        raise ValueError(
            f"the columns of {site_file.name} must have names, as in {{'x': x, 'y': y}}, to hold some examples out"
        )
    return clients.columns


def parted(clients: Clients, folder: Path | None = None) -> tuple[Clients, Clients | None]:
    """(examples trained on, examples held out or None if the study holds none out)."""
    clients = clients.without(*(name for name in (PERSON,) if name in clients.named_columns))
    if HELD_OUT not in clients.named_columns:
        return clients, None
    out, rest = clients.named_columns[HELD_OUT], clients.without(HELD_OUT)
    return rest.take(np.flatnonzero(~out), folder), rest.take(np.flatnonzero(out), folder)


def _own_choice(clients: Clients, column: str, person: str | None) -> np.ndarray:
    """The held-out examples by the site's own column, checked."""
    values = clients.named_columns.get(column)
    if (
        values is None
        or values.ndim != 1
        or not (values.dtype.kind == "b" or (values.dtype.kind in "iu" and np.isin(values, (0, 1)).all()))
    ):
        raise ValueError(
            f"held_out = {column!r} must be a column of truth values, or of 0 and 1, one an example; the data have "
            f"{', '.join(clients.named_columns)}"
        )
    out = values.astype(bool)
    if (
        person is not None
        and np.isin(clients.column_of(person, "person")[out], clients.named_columns[person][~out]).any()
    ):
        raise ValueError(
            f"held_out = {column!r} has a person of column {person!r} on both sides: let it go by persons"
        )
    return out
