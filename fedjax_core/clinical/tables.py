"""Tables of the performance of methods at hospitals: for a terminal, and in Markdown for a README or a paper.

>>> import numpy as np
>>> from fedjax_core.clinical.performance import Predictions, by_hospital
>>> found = by_hospital({"north": Predictions(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9]))}, resamples=200)
>>> print(markdown({"FedAvg": found}, ["auroc"]).splitlines()[0])
| hospital | method | AUROC |
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from fedjax_core.clinical.performance import METRICS, Assessment, estimate, names_of


def table(
    results: Mapping[str, Assessment],
    metrics: Sequence[str] = tuple(METRICS),
    sizes: Mapping[str, int] | None = None,
) -> Table:
    """A table for a terminal, with a row for each hospital and method and a column for each metric; `sizes`
    adds numbers of patients."""
    made = Table(title="test patients, 95 % intervals", title_justify="left")
    for head in ("hospital", "method"):
        made.add_column(head, no_wrap=True)
    for metric in metrics:
        made.add_column(METRICS[metric], no_wrap=True, justify="right")
    for group, rows in _rows(results, metrics, sizes):
        for i, (method, cells) in enumerate(rows):
            made.add_row(
                escape(group) if i == 0 else "", escape(method), *cells, end_section=i == len(rows) - 1
            )
    return made


def markdown(
    results: Mapping[str, Assessment],
    metrics: Sequence[str] = tuple(METRICS),
    sizes: Mapping[str, int] | None = None,
) -> str:
    """The same table as text for a README or a paper, and what its - and * stand for."""
    heads = ["hospital", "method", *(METRICS[metric] for metric in metrics)]
    lines = ["| " + " | ".join(heads) + " |", "|---|---" + "|---:" * len(metrics) + "|"]
    for group, rows in _rows(results, metrics, sizes):
        lines += ["| " + " | ".join([_cell(group), _cell(method), *cells]) + " |" for method, cells in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(results, metrics))]).rstrip() + "\n"


def notes(results: Mapping[str, Assessment], metrics: Sequence[str] = tuple(METRICS)) -> list[str]:
    """What - and * stand for in these tables: a sentence for each reason, with its metric and hospitals."""
    where: dict[tuple[str, str, str], dict[str, None]] = {}
    for method, assessment in results.items():
        for hospital in names_of(results):
            for metric in metrics:
                one = estimate(method, assessment, hospital, metric)
                if one.note:
                    where.setdefault(("-" if np.isnan(one.value) else "*", metric, one.note), {})[
                        hospital
                    ] = None
    return [
        f"{sign} {METRICS[metric]} ({', '.join(hospitals)}): {note}"
        for (sign, metric, note), hospitals in where.items()
    ]


def _rows(
    results: Mapping[str, Assessment], metrics: Sequence[str], sizes: Mapping[str, int] | None
) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """(hospital's name, [(method, its cells)]) for each hospital."""
    for group in names_of(results):
        name = f"{group} (n = {sizes[group]})" if sizes and group in sizes else group
        cells = {
            method: [str(estimate(method, assessment, group, metric)) for metric in metrics]
            for method, assessment in results.items()
        }
        yield name, list(cells.items())


def _cell(text: str) -> str:
    """A name, escaped for one cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
