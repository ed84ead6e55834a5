"""Intake of a hospital's own tables as the columns that a study agreed on: schema, mapping, reading, and a
report of what became of each row.

schema.toml    of the study    fields with unit, range, categories and missing codes; outcome, person, time
mapping.toml   of each site    where its own table is, and how its columns become those fields
read           both            columns, one coding of categories for all sites; unusable rows left out, by reason
readiness      both            the same, as a person reads it before the site joins
drift          of all sites    how far a site's columns are from those of all sites together, by sums
"""

from fedjax_core.intake.drift import Reference
from fedjax_core.intake.mapping import Mapping
from fedjax_core.intake.reading import Reading, read
from fedjax_core.intake.schema import Schema

__all__ = ["Mapping", "Reading", "Reference", "Schema", "read"]
