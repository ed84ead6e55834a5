"""A run as it goes on: what a terminal shows of a folder, how much time is left, and when looking ends."""

import io
import json
import math

import pytest
from rich.console import Console

from fedjax_core.cli import main, watch
from fedjax_core.report import gather, note
from fedjax_core.report.facts import Facts
from fedjax_core.report.live import Pace, sparkline, view
from fedjax_core.run.plan import Plan, write_plan


def write(folder, rounds, **more):
    lines = [
        {"round": i, "kind": "train", "loss": 1 / i, "lacked": "oslo" if i == 2 else "", **more}
        for i in range(1, rounds + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def shown(facts, pace):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(view(facts, pace))
    return console.export_text()


def test_time_left_is_that_of_the_last_looks():
    pace = Pace(rounds=100)
    assert math.isnan(pace.seconds_a_round) and math.isnan(pace.seconds_left)
    for round, now in ((10, 0.0), (10, 3.0), (14, 8.0), (20, 20.0)):
        pace.look(round, now)
    assert (pace.seconds_a_round, pace.seconds_left, pace.done) == (2.0, 160.0, False)
    pace.look(5, 30.0)  # it began again
    assert math.isnan(pace.seconds_left)
    pace.look(100, 40.0)
    assert pace.done and pace.seconds_left == 0.0
    assert math.isnan(Pace().seconds_left) and not Pace().done
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        Pace(rounds=0)


def test_a_metric_that_does_not_change_or_is_not_finite_has_a_line():
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([math.nan]) == "·"
    assert sparkline(range(100), width=3) == "▁▅█"


def test_the_view_has_rounds_metrics_sites_refusals_and_privacy(tmp_path):
    write(tmp_path, 4, epsilon=0.5)
    found = gather(tmp_path)
    facts = Facts(
        tmp_path,
        found.records,
        spent={"epsilon": 1.25, "delta": 1e-5},
        left={("mayo", "update"): (3, 1200), ("mayo", "answered"): (1, 80)},
        faults={("oslo", "declined", "policy: a [rare] level"): 2},
        examples={"mayo": 1500, "oslo": 40},
    )
    pace = Pace(rounds=8)
    pace.look(2, 0.0)
    pace.look(4, 6.0)
    text = shown(facts, pace)
    for said in (
        "round 4 of 8",
        "3 s a round",
        "0:00:12 left",
        "loss",
        "0.25",
        "epsilon 1.25, delta 1e-05",
        "policy: a [rare] level",
    ):
        assert said in text
    rows = [line.split() for line in text.split("rounds without it")[1].splitlines()]
    assert rows[1:3] == [["mayo", "1,500", "4", "1,280", "0"], ["oslo", "40", "0", "0", "1"]]


def test_looking_goes_on_until_the_last_round_and_the_page_loads_itself_again_until_then(
    tmp_path, monkeypatch, capsys
):
    run, html = tmp_path / "run", tmp_path / "live.html"
    run.mkdir()
    pages = []

    def next_round(seconds):
        assert seconds == 5.0
        pages.append(html.read_text() if html.exists() else "")
        write(run, len(pages))

    monkeypatch.setattr(watch.time, "sleep", next_round)
    assert main(["watch", str(run), "--rounds", "3", "--every", "5", "--page-file", str(html)]) == 0
    assert pages[0] == ""  # there was nothing to show yet
    assert len(pages) == 3 and all('http-equiv="refresh" content="5"' in page for page in pages[1:])
    assert "refresh" not in html.read_text()
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl"]
    assert "round 3 of 3" in capsys.readouterr().out


def test_looking_goes_by_the_plan_in_the_folder_and_ends_where_the_run_stopped(tmp_path, monkeypatch, capsys):
    write(tmp_path, 2)
    write_plan(tmp_path, Plan(6, "interrupted"))
    looks = []

    def goes_on(seconds):
        looks.append(seconds)
        write(tmp_path, 2 + len(looks))
        write_plan(tmp_path, Plan(6, "early stop" if len(looks) == 2 else ""))

    monkeypatch.setattr(watch.time, "sleep", goes_on)
    assert main(["watch", str(tmp_path), "--page-file", str(tmp_path / "live.html")]) == 0
    assert len(looks) == 2 and "round 4 of 6" in (out := capsys.readouterr().out) and "early stop" in out
    html = (tmp_path / "live.html").read_text()
    assert "early stop" in html and "rounds that were planned" in html and "refresh" not in html


def test_one_look_prints_and_ends(tmp_path, capsys):
    write(tmp_path, 2)
    note(tmp_path, question="Who dies?")
    assert main(["watch", str(tmp_path), "--once"]) == 0
    out = capsys.readouterr().out
    assert "Who dies?" in out and "round 2" in out


@pytest.mark.parametrize(
    ("args", "said"), [([], "is no folder of a run"), (["--every", "0"], "every=0.0 must be above 0")]
)
def test_what_cannot_be_watched_is_refused(tmp_path, capsys, args, said):
    assert main(["watch", str(tmp_path if args else tmp_path / "none"), *args]) == 1
    assert said in capsys.readouterr().err
