"""The report as one HTML page: nothing is loaded from anywhere, and all text that comes from the run is
escaped."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from fedjax_core.report import charts
from fedjax_core.report.checklist import FOR_AUTHOR, card, items
from fedjax_core.report.facts import Facts

MOST_BYTES = 2_000_000
_MOST_ROWS = 200
_MOST_DRAWN = 8  # sites whose flow of rows is drawn one by one
_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 920px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .6em 0; }
td, th { border-bottom: 1px solid #ddd; padding: .2em .8em .2em 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } svg { max-width: 100%; height: auto; display: block; margin: .6em 0; }
pre { background: #f6f6f6; padding: .6em; overflow-x: auto; font-size: 13px; } .author { background: #fff3bf; } .none { color: #777; }
"""


def page(facts: Facts) -> str:
    """The HTML page of a run; raises ValueError where it would be 2 MB or more."""
    title = str(facts.notes.get("question") or f"Run in {facts.folder.name}")
    notes = facts.notes
    parts = {
        "Question": _question(facts),
        "Sites and people": _people(facts),
        "Convergence": _convergence(facts),
        "Results by site": _results(notes.get("performance", {})),
        "Results by subgroup": _results(notes.get("subgroups", {})),
        "Calibration": charts.calibration(notes["calibration"]) if notes.get("calibration") else "",
        "Statistics": _statistics(notes.get("statistics", {})),
        "What left each site": _left(facts),
        "Privacy spent": _privacy(facts),
        "Time and bytes": _cost(facts),
        "Faults and refusals": _faults(facts),
        "Model card": _card(facts),
        "TRIPOD+AI": _checklist(facts),
        "Configuration and digests": _configuration(facts),
    }
    body = "".join(f"<h2>{escape(head)}</h2>{inner or NOTHING}" for head, inner in parts.items())
    html = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )
    if (size := len(html.encode())) >= MOST_BYTES:
        raise ValueError(
            f"the report would have {size:,} bytes, and at most {MOST_BYTES:,} are sensible: note fewer statistics or subgroups"
        )
    return html


NOTHING = '<p class="none">Nothing of this is in the folder.</p>'


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table of plain values; nothing where there are no rows."""
    lines = list(rows)
    more = f"<p>and {len(lines) - _MOST_ROWS} more</p>" if len(lines) > _MOST_ROWS else ""
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in lines[:_MOST_ROWS])
    return (
        f"<table><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>{body}</table>{more}"
        if lines
        else ""
    )


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="n">{_number(value)}</td>'
    text = escape(str(value))
    return f'<td class="author">{text}</td>' if value == FOR_AUTHOR else f"<td>{text}</td>"


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _question(facts: Facts) -> str:
    names = ("question", "population", "outcome", "intended_use", "limitations", "authors")
    return table(("", ""), [(name.replace("_", " "), facts.notes.get(name) or FOR_AUTHOR) for name in names])


def _people(facts: Facts) -> str:
    """The flow of rows, drawn of all sites and, where they are few, of each; the numbers of each as a table."""
    flow = facts.notes.get("flow", {})
    steps = [step for step in charts.STEPS if any(step in numbers for numbers in flow.values())]
    every = {step: sum(_count(numbers.get(step, 0)) for numbers in flow.values()) for step in steps}
    drawn = {"all sites": every, **(flow if len(flow) <= _MOST_DRAWN else {})} if len(steps) > 1 else {}
    sites = dict.fromkeys((*flow, *facts.examples))
    rows = [
        (
            site,
            *(_count(flow[site][step]) if step in flow.get(site, {}) else "" for step in steps),
            *([facts.examples.get(site, "")] if facts.examples else []),
        )
        for site in sites
    ]
    if len(rows) > 1:
        rows.append(("all", *every.values(), *([sum(facts.examples.values())] if facts.examples else [])))
    reasons = [
        (site, reason, count)
        for site, numbers in flow.items()
        for reason, count in numbers.get("left out", {}).items()
    ]
    heads = ("site", *steps, *(["examples, by the site's description"] if facts.examples else []))
    return charts.flow(drawn) + table(heads, rows) + table(("site", "rows left out for", "rows"), reasons)


def _count(value: Any) -> Any:
    return sum(value.values()) if isinstance(value, Mapping) else value


def _convergence(facts: Facts) -> str:
    html = ""
    for kind, description in (
        ("train", "training, mean over the round's steps"),
        ("eval", "evaluation, of the model after the round"),
    ):
        records = [record for record in facts.records if record["kind"] == kind]
        names = dict.fromkeys(
            name for record in records for name, value in record.items() if isinstance(value, float)
        )
        for name in [name for name in names if name in _CURVES or kind == "eval"][:6]:
            recorded = [record for record in records if name in record]
            y = [math.nan if record[name] is None else float(record[name]) for record in recorded]
            html += f"<h3>{escape(name)} ({description})</h3>" + charts.lines(
                {facts.algorithm or name: ([record["round"] for record in recorded], y)}, name
            )
    return html


_CURVES = ("loss", "accuracy", "auroc")


def _results(results: Mapping[str, Mapping[str, Any]]) -> str:
    metrics = list(dict.fromkeys(name for of in results.values() for name in of))
    html = ""
    for metric in metrics:
        rows = {group: _interval(of[metric]) for group, of in results.items() if metric in of}
        html += f"<h3>{escape(metric)}</h3>" + charts.intervals(
            rows, f"{metric}, with 95 % interval where there is one"
        )
        html += table(("", metric, "low", "high"), [(group, *row) for group, row in rows.items()])
    return html


def _interval(value: Any) -> tuple[float, float, float]:
    numbers = [
        math.nan if one is None else float(one)
        for one in (value if isinstance(value, list | tuple) else [value])
    ]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else (numbers[0], math.nan, math.nan)


def _statistics(statistics: Mapping[str, str]) -> str:
    return "".join(f"<h3>{escape(title)}</h3><pre>{escape(text)}</pre>" for title, text in statistics.items())


def _left(facts: Facts) -> str:
    of: dict[str, dict[str, tuple[int, int]]] = {}
    for (site, kind), value in facts.left.items():
        of.setdefault(site, {})[kind] = value
    sent = table(
        ("site", "messages", "bytes of tensors", "of these"),
        [
            (
                site,
                sum(messages for messages, _ in kinds.values()),
                sum(size for _, size in kinds.values()),
                ", ".join(f"{messages:,} {kind}" for kind, (messages, _) in kinds.items()),
            )
            for site, kinds in of.items()
        ],
    )
    names = table(
        ("site", "fields that left it, by its own log"),
        [(site, ", ".join(fields)) for site, fields in facts.fields.items()],
    )
    return sent + names


def _privacy(facts: Facts) -> str:
    if not facts.spent:
        return "<p>No account of an epsilon was kept: nothing is promised of what the model tells of a person.</p>"
    return table(
        ("", ""), [(name, value) for name, value in facts.spent.items() if not isinstance(value, Mapping)]
    ) + table(("terms", ""), [*facts.spent.get("terms", {}).items()])


def _cost(facts: Facts) -> str:
    total = sum(size for _, size in facts.left.values())
    train = [record for record in facts.records if record["kind"] == "train"]
    bits = {
        name: float(np.nansum([r.get(name) or 0.0 for r in train]))
        for name in ("bits_up", "bits_down")
        if any(name in r for r in train)
    }
    rows: list[tuple[str, Any]] = [("rounds", facts.rounds)] if facts.records else []
    rows += [("rounds that were planned", facts.plan.rounds)] if facts.plan.rounds else []
    rows += [("stopped", facts.plan.stopped)] if facts.plan.stopped else []
    rows += [("seconds, by the coordinator's log", facts.seconds)] if math.isfinite(facts.seconds) else []
    rows += [("bytes of tensors that sites sent, by the coordinator's log", total)] if total else []
    rows += [(f"bytes {'up' if name == 'bits_up' else 'down'}, as packed", bits[name] / 8) for name in bits]
    return table(("", ""), rows)


def _faults(facts: Facts) -> str:
    lacked = [(r["round"], r["lacked"]) for r in facts.records if r.get("lacked")]
    html = table(("who", "what", "why", "times"), [(*key, count) for key, count in facts.faults.items()])
    html += table(("round", "sites that were not in it"), lacked)
    known = facts.records or facts.seconds == facts.seconds
    return html or ("<p>None is recorded.</p>" if known else "")


def _card(facts: Facts) -> str:
    return table(("", ""), [*card(facts).items()])


def _checklist(facts: Facts) -> str:
    rows = items(facts)
    filled = sum(text != FOR_AUTHOR for _, _, text in rows)
    return (
        f"<p>{filled} of {len(rows)} items have something of the run; the others are for the author.</p>"
        + table(("", "item", "from the run"), rows)
    )


def _configuration(facts: Facts) -> str:
    return (
        table(("digest of", ""), [*facts.digests.items()])
        + table(("version", ""), [*facts.versions.items()])
        + table(
            ("setting", ""),
            [(name, "" if value is None else str(value)[:200]) for name, value in facts.config.items()],
        )
    )
