"""The readiness report: what a site's table has for a study, what is missing or looks wrong in it, and what
to do.

>>> from fedjax_core.intake.mapping import Mapping
>>> from fedjax_core.intake.reading import fields_of
>>> from fedjax_core.intake.schema import Schema
>>> schema = Schema.of({"name": "s", "fields": {"kg": {"unit": "kg", "range": [30, 250]}}})
>>> found = fields_of({"kg": [81000, 60000, 75000, 90000, 66000]}, Mapping.of({"schema": "s", "source": "a"}), schema)
>>> print(readiness(found).to_do[1])
'kg' looks like another unit (a factor of 1000, as of kg and g): divide it by 1000, factor = 0.001 of the mapping
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedjax_core.intake.drift import Drift, Reference, of_category, of_number
from fedjax_core.intake.reading import Reading, missing
from fedjax_core.intake.schema import Field
from fedjax_core.intake.units import suspects

_MUCH = 0.35  # of a field's values missing is worth a word
_FEW = 5  # strange values that are shown


@dataclass(frozen=True)
class Readiness:
    """The readiness of a site's table: its rows, fields and classes, and what to do."""

    rows: int
    used: int
    people: int | None
    """None where the schema names no field of persons."""
    reasons: Mapping[str, int]
    """{reason: rows that are left out}."""
    fields: Mapping[str, Mapping[str, str]]
    """{field: {property: its description}}."""
    classes: Mapping[str, int]
    """{category of the outcome: rows that are used}."""
    to_do: tuple[str, ...]
    records: int = 0
    """Records that were made into rows; 0 where the rows are the records."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """{reason: records that gave no row}."""
    where: tuple[str, ...] = ()
    """The first of these records, by file and line."""
    notes: tuple[str, ...] = ()
    drift: Mapping[str, Drift] = field(default_factory=dict)
    """{field: how far it is from all sites together}, of fields whose sums were given."""
    look: tuple[str, ...] = ()
    """Fields that differ from the other sites' and may do so: they keep no site from taking part."""

    @property
    def ready(self) -> bool:
        """Whether nothing is to be done."""
        return not self.to_do

    def text(self) -> str:
        """The report as text."""
        people = "" if self.people is None else f", of {self.people} people"
        records = [f"records   {self.records}"] if self.records else []
        lines = [*records, *(f"  left out {count:>6}  {reason}" for reason, count in self.left_out.items())]
        lines += [*(f"  {one}" for one in (*self.where, *self.notes)), f"rows in   {self.rows}"]
        lines += [f"  left out {count:>6}  {reason}" for reason, count in self.reasons.items()]
        lines += [f"rows out  {self.used}{people}", ""]
        width = max((len(name) for name in self.fields), default=0)
        lines += [
            f"{name:{width}}  " + ", ".join(f"{what} {value}" for what, value in of.items())
            for name, of in self.fields.items()
        ]
        if self.classes:
            lines += [
                "",
                "outcome   " + ", ".join(f"{name}: {count}" for name, count in self.classes.items()),
            ]
        lines += ["", *(f"LOOK   {one}" for one in self.look)] if self.look else []
        lines += ["", *([f"TO DO  {one}" for one in self.to_do] or ["ready: nothing is to be done"])]
        return "\n".join(lines)


def readiness(
    reading: Reading, *, examples: int = 0, per_class: int = 0, reference: Reference | None = None
) -> Readiness:
    """The readiness of a reading.

    `examples` and `per_class` are the minimums of the site's policy, `reference` the fields of all sites
    together.
    """
    schema, to_do = reading.schema, []
    used = int((~reading.bad).sum())
    if reading.share > schema.max_bad:
        to_do.append(
            f"{reading.too_many.split(', a share of')[0]}, and the schema allows a share of {schema.max_bad:g} "
            "(max_bad): mend the table or the mapping, for the reasons above"
        )
    fields = {}
    for name, one in schema.fields.items():
        fields[name], todo = _field(name, one, reading)
        to_do += todo
    classes = {}
    if schema.outcome and schema.fields[schema.outcome].kind == "category":
        of = schema.fields[schema.outcome].categories
        classes = dict(
            zip(of, np.bincount(reading.columns[schema.outcome], minlength=len(of)).tolist(), strict=True)
        )
        for category, count in classes.items():
            if count < max(1, per_class):
                to_do.append(
                    f"{count} rows have {schema.outcome!r} = {category!r}, and at least {max(1, per_class)} are needed"
                )
    if used < max(1, examples):
        to_do.append(f"{used} rows can be used, and at least {max(1, examples)} are needed")
    drift = {} if reference is None else _drift(reading, reference)
    for name, moved in drift.items():
        fields[name]["drift"] = moved.text()
        if moved.other:
            to_do.append(
                f"{name!r} is {moved.difference:+.1f} standard deviations from all sites together: is it the same "
                f"quantity, in {schema.fields[name].unit or 'the same unit'}?"
            )
    look = tuple(
        f"{name!r} is unlike all sites together ({moved.text()}): other patients, or another way to measure or code it?"
        for name, moved in drift.items()
        if moved.large and not moved.other
    )
    people = len(np.unique(reading.columns[schema.person])) if schema.person else None
    raw = reading.raw
    return Readiness(
        len(reading.bad),
        used,
        people,
        dict(reading.reasons.most_common()),
        fields,
        classes,
        tuple(to_do),
        records=raw.records,
        left_out=dict(raw.left_out.most_common()),
        where=raw.where,
        notes=raw.notes,
        drift=drift,
        look=look,
    )


def _drift(reading: Reading, reference: Reference) -> dict[str, Drift]:
    """{field: its drift} over the used rows; raises ValueError for sums of another schema."""
    if reference.schema != reading.schema.digest:
        raise ValueError(
            f"the sums of all sites are of another schema ({reference.schema}) than this mapping's ({reading.schema.digest}): "
            "ask for those of this study's schema"
        )
    drift = {}
    if odd := [name for name in reference.fields if name not in reading.schema.fields]:
        raise ValueError(
            f"the sums of all sites have a field {odd[0]!r}, and the schema has none of that name"
        )
    for name, there in reference.fields.items():
        field, x = reading.schema.fields[name], reading.columns[name]
        if field.kind == "category":
            counts = np.bincount(x[x >= 0], minlength=len(field.categories)).tolist()
            drift[name] = of_category(dict(zip(field.categories, counts, strict=True)), there)
        elif field.kind in ("number", "whole"):
            drift[name] = of_number(x.astype(float), there)
    return {name: one for name, one in drift.items() if one.text()}


def _field(name: str, field: Field, reading: Reading) -> tuple[dict[str, str], list[str]]:
    """(a summary of the field, what to do about it)."""
    x, strange, to_do = reading.all[name], reading.strange[name], []
    gone = missing(x, field)
    gone &= ~reading.unread[name]
    share = float(gone.mean()) if len(x) else 0.0
    summary = {"missing": f"{int(gone.sum())} ({share:.1%})"}
    if share > _MUCH:
        to_do.append(
            f"{name!r} is missing in {share:.0%} of the rows: is the column the right one, and are its missing codes?"
        )
    if field.kind in ("number", "whole"):
        known = x[np.isfinite(x)]
        if len(known):
            summary["values"] = f"{known.min():.4g} to {known.max():.4g}, median {np.median(known):.4g}" + (
                f" {field.unit}" if field.unit else ""
            )
        if field.range:
            low, high = field.range
            for factor, meaning in suspects(x, low, high)[:1]:
                way = f"divide it by {1 / factor:g}" if factor < 1 else f"multiply it by {factor:g}"
                to_do.append(
                    f"{name!r} looks like another unit ({meaning}): {way}, factor = {factor:g} of the mapping"
                )
    elif field.kind == "image":
        summary["values"] = f"pictures of {' x '.join(map(str, field.shape))}"
    elif field.kind == "category":
        counts = np.bincount(x[x >= 0], minlength=len(field.categories))
        summary["values"] = "; ".join(
            f"{one} {count}" for one, count in zip(field.categories, counts.tolist(), strict=True)
        )
    else:
        summary["values"] = f"{len(np.unique(x[x != '']))} different"
    if strange:
        few = ", ".join(f"{value!r} ({count})" for value, count in strange.most_common(_FEW))
        what = {
            "category": "none of its categories: say codes = {...} in the mapping",
            "image": "no pictures that can be used:",
        }.get(field.kind, "no number: are they missing codes?")
        to_do.append(f"{name!r} has values that are {what} {few}")
    return summary, to_do
