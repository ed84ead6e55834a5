"""The report of a run's folder: one page, nothing loaded, nothing claimed that is not there."""

import json
import math
import re
import shutil

import pytest

from fedjax_core import algorithms, compose, models
from fedjax_core.cli import main
from fedjax_core.describe import describe
from fedjax_core.report import charts, gather, note, page
from fedjax_core.report.checklist import FOR_AUTHOR, items
from fedjax_core.sites.audit import Log
from fedjax_core.sites.wire.identity import SiteKey

LOSSES = [0.7, 0.5, None, 0.4]


@pytest.fixture
def folder(tmp_path):
    lines = [
        f'{{"round": {i}, "kind": "train", "loss": {"null" if x is None else x}, "examples": 40.0}}'
        for i, x in enumerate(LOSSES, 1)
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join(lines) + '\n{"round": 4, "kind": "eval", "loss": 0.45}\n'
    )
    flow = {
        "oslo": {
            "rows in": 50,
            "left out": {"'age' is missing": 4},
            "people": 44,
            "trained on": 36,
            "held out": 10,
        }
    }
    note(
        tmp_path,
        question="Who <b>dies</b>?",
        flow=flow,
        performance={"all": {"auroc": [0.8, 0.7, 0.9]}, "oslo": {"auroc": 0.75}},
    )
    note(tmp_path, calibration={"oslo": [[0.1, 0.2, 20], [0.6, 0.5, 16]]}, statistics={"Table 1": "age < 60"})
    return tmp_path


def test_the_page_has_what_the_folder_holds_and_loads_nothing(folder, capsys):
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert len(text.encode()) < 2_000_000 and str(len(text.encode())) in capsys.readouterr().out.replace(
        ",", ""
    )
    assert re.findall(r"(?:src|href)=|@import|url\(|<script", text) == []
    assert "Who &lt;b&gt;dies&lt;/b&gt;?" in text and "<b>dies" not in text
    for said in (
        "&#x27;age&#x27; is missing",
        "age &lt; 60",
        "0.75",
        "rows in",
        "loss (training",
        "loss (evaluation",
    ):
        assert said in text
    assert text.count("<svg") == 5  # flow, two curves, intervals, calibration


def test_a_gap_in_a_curve_is_no_point_of_it(folder):
    train = page(gather(folder)).split("loss (training")[1].split("</svg>")[0]
    assert sum(len(points.split()) for points in re.findall(r'polyline[^>]* points="([^"]*)"', train)) == 3


def test_no_item_claims_what_the_folder_lacks(folder, tmp_path_factory):
    found = {number: said for number, _, said in items(gather(folder))}
    assert (
        len(found) == 27
        and found["4"] == "Who <b>dies</b>?"
        and "4 of 50 rows" in found["7"]
        and "10 examples" in found["16"]
    )
    assert found["5"] == "tables of 1 sites: oslo"
    assert {number for number, said in found.items() if said == FOR_AUTHOR} >= {
        "1",
        "2",
        "3",
        "6",
        "8",
        "9",
        "14",
        "17",
        "25",
        "26",
        "27",
    }
    bare = tmp_path_factory.mktemp("bare")
    note(bare, outcome="death")
    assert [number for number, _, said in items(gather(bare)) if said != FOR_AUTHOR] == ["8", "18"]
    assert "Nothing of this is in the folder." in page(gather(bare))


def test_the_report_names_the_algorithm_as_the_checkpoint_or_the_log_has_it(folder):
    config = describe({"round": compose(algorithms.scaffold(models.linear(features=2), 0.1, 3))})
    newest = folder / "checkpoints" / "00000004"
    newest.mkdir(parents=True)
    (newest / "checkpoint.json").write_text(
        json.dumps({"digest": "ab", "body": {"about": {"config": config}}})
    )
    facts = gather(folder)
    assert facts.algorithm == "scaffold" and {number: said for number, _, said in items(facts)}[
        "12"
    ].startswith("4 federated rounds of scaffold;")
    text = page(facts)
    assert (
        text.count("4 federated rounds of scaffold") == 2
        and ">scaffold</text>" in text.split("loss (training")[1].split("</svg>")[0]
    )
    shutil.rmtree(newest)
    with Log(folder / "audit", SiteKey.make("coordinator")) as log:
        log.record("coordinator", "round", round=0, about={"algorithm": "fedavg", "sites": 3})
    assert gather(folder).algorithm == "fedavg"


def test_a_folder_without_a_run_and_a_note_that_no_report_has_are_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'colour' is nothing that a report says"):
        note(tmp_path, colour="blue")


def test_a_report_that_would_be_too_large_is_refused(folder):
    note(folder, statistics={"all": "x" * 2_000_000})
    with pytest.raises(ValueError, match="at most 2,000,000"):
        page(gather(folder))


def test_sites_are_those_that_took_part_and_not_the_rows_of_a_table_of_results(folder):
    note(
        folder,
        performance={"oslo": {"hazard ratio": [2.0, 0.2, 20.0]}, "pooled": {"hazard ratio": [1.5, 1.0, 2.2]}},
    )
    found = {number: said for number, _, said in items(gather(folder))}
    assert gather(folder).sites == ["oslo"] and found["5"] == "tables of 1 sites: oslo"
    note(folder, flow={"oslo": {"people": 44}})
    found = {number: said for number, _, said in items(gather(folder))}
    assert found["7"] == FOR_AUTHOR  # rows in are not known, so neither is how many were left out
    text = page(gather(folder))
    assert text.count("<svg") == 4  # two curves, intervals and calibration; one step is no flow


def test_the_flow_of_many_sites_is_drawn_of_all_together(folder):
    note(
        folder,
        flow={f"site-{i}": {"rows in": 20, "left out": {"a duplicate": i}, "people": 9} for i in range(9)},
    )
    drawn = page(gather(folder)).split("Sites and people")[1].split("</svg>")[0]
    assert drawn.count("<rect") == 3 and ">180<" in drawn and ">36<" in drawn and "site-3" not in drawn


def test_ratios_of_small_hospitals_have_a_logarithmic_axis():
    rows = {"a": (48.7, 6.3, 376.0), "b": (1.1, 0.15, 7.9), "c": (3.2, math.nan, math.nan)}
    places = dict(
        re.findall(
            r'<circle cx="([\d.]+)"[^>]*/><text[^>]*>([\d.]+)<', charts.intervals(rows, "hazard ratio")
        )
    )
    x = {value: float(at) for at, value in places.items()}
    assert (x["48.7"] - x["3.2"]) / (x["3.2"] - x["1.1"]) == pytest.approx(
        math.log(48.7 / 3.2) / math.log(3.2 / 1.1), rel=2e-3
    )
