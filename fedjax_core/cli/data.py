"""`fedjax-core data ...`: look at a site's own table before it joins."""

from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from fedjax_core.intake.drift import Reference
from fedjax_core.intake.mapping import Mapping
from fedjax_core.intake.readiness import readiness
from fedjax_core.intake.reading import read
from fedjax_core.intake.schema import Schema
from fedjax_core.intake.tables import table_of
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.policy.tables import Minimum
from fedjax_core.sites.site_file import SiteFile

app = SubcommandApp()


@app.command(name="check")
def check(path: Positional[Path], federation: Path | None = None) -> None:
    """Says what a study can use of a site's table (rows by reason, people, missing values, ranges, units),
    and what to do about the rest.

    Nothing leaves the site.

    Args:
        path: The mapping, or the site's file that names it as its data; its policy's minimums are then asked,
            too.
        federation: What is known of all sites together, from the coordinator (`fedjax_core.intake.Reference`):
            the report then says which columns are unlike theirs.
    """
    minimum, mapping = Minimum(), path
    if "schema" not in table_of(path):
        site_file = SiteFile.read(path)
        if not isinstance(site_file.data, Path) or site_file.data.suffix != ".toml":
            raise ValueError(
                f"{path} names no mapping as its data: write data = 'mapping.toml', or give the mapping itself"
            )
        mapping = site_file.data
        minimum = Minimum() if site_file.policy is None else Policy.read(site_file.policy).minimum
    schema = Schema.read(Mapping.read(mapping).schema)
    print(f"{mapping}: study {schema.name} (schema {schema.digest})\n")
    reference = None if federation is None else Reference.read(federation)
    report = readiness(
        read(mapping), examples=minimum.examples, per_class=minimum.per_class, reference=reference
    )
    print(report.text())
    if not report.ready:
        raise RuntimeError(
            f"{mapping}: not ready, {len(report.to_do)} things are to be done (see TO DO above)"
        )
