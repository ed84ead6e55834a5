import io

import pytest
from rich.console import Console

from fedjax_core.clinical import performance, tables
from tests.clinical.hospitals import hospital


def test_pooled_is_all_patients_and_tables_hold_every_cell(patients):
    rows = {"north": slice(30), "south": slice(30, None)}
    halves = {
        name: performance.Predictions(patients.outcome[part], patients.risk[part])
        for name, part in rows.items()
    }
    results = {"FedAvg": performance.by_hospital(halves), "local": performance.by_hospital(halves, seed=1)}
    assert results["FedAvg"][performance.ALL]["auroc"] == performance.assess(*patients)["auroc"]
    text = tables.markdown(results)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.table(results, ["brier"]))
    shown = console.export_text()
    for found in results.values():
        for metrics in found.values():
            assert all(str(estimate) in text for estimate in metrics.values())
            assert str(metrics["brier"]) in shown


def test_names_and_methods_that_do_not_match_are_told_in_the_table():
    both = performance.by_hospital(
        {"St. Mary | North": hospital(20), "[red]x": hospital(20, 1)}, resamples=20
    )
    few = performance.by_hospital({"[red]x": hospital(20, 1)}, resamples=20)
    for results in ({"fed": both, "local": few}, {"local": few, "fed": both}):
        text = tables.markdown(results)
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1 and len(lines) == 2 + 3 * 2
        assert "(St. Mary | North): local was not assessed there" in text
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(tables.table(results))
        assert "[red]x" in console.export_text()
    with pytest.raises(ValueError, match="at least one method"):
        tables.markdown({})
