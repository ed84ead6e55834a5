"""What a consortium in a box says on screen of sites that are away, without starting any: lines, notes, and
the table at its end."""

import json
import logging
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fedjax_core.consortium import box, lead
from fedjax_core.consortium.setup import Layout, StudyPlan
from fedjax_core.evaluation import Evaluation
from fedjax_core.sites.federation import Paused
from fedjax_core.sites.wire.identity import SiteKey

SITES = ("charite", "mayo", "oslo")


@pytest.fixture
def folder(tmp_path):
    for part in ("coordinator/run", "logs"):
        (tmp_path / part).mkdir(parents=True)
    return Layout(tmp_path)


def finished(folder, lacked):
    """A round that lacked these sites is on the disk."""
    path = folder.coordinator / "run" / "metrics.jsonl"
    number = len(folder.rounds()) + 1
    record = {"round": number, "kind": "train", "loss": 0.5, "clients": float(3 - len(lacked))}
    with open(path, "a") as file:
        file.write(json.dumps(record | ({"lacked": " ".join(lacked)} if lacked else {})) + "\n")


def test_a_round_that_lacked_a_site_is_said_at_once_and_the_coordinator_is_heard(folder):
    said, log = [], folder.root / "logs" / "coordinator.log"
    log.write_text(f"{lead.SAYS}of a run before\n")
    watch = box._Watch(folder, StudyPlan(SITES, rounds=40), SimpleNamespace(), said.append, "sites")
    for lacked in ([], [], ["mayo"], ["mayo"], []):
        finished(folder, lacked)
        watch._show()
    with open(log, "a") as file:
        file.write(f"Traceback\n{lead.SAYS}round 3 goes on without mayo\n{lead.SAYS}half of a li")
    watch._show()
    with open(log, "a") as file:
        file.write("ne\n")
    watch._show()
    assert [" ".join(line.split()) for line in said] == [
        "round 1 of 40: loss 0.5000, 3 sites",
        "round 3 of 40: loss 0.5000, 2 sites, without mayo",
        "round 4 of 40: loss 0.5000, 2 sites, without mayo",
        "round 5 of 40: loss 0.5000, 3 sites",
        "note round 3 goes on without mayo",
        "note half of a line",
    ]


def test_the_table_says_in_how_many_rounds_each_site_was(folder):
    for lacked in ([], ["mayo"], ["mayo", "oslo"]):
        finished(folder, lacked)
    about = {
        "rounds": 3,
        "sizes": [3, 0, 5],
        "pooled": {"loss": 0.5},
        "sites": {"loss": [0.4, float("nan"), 0.6]},
    }
    (folder.coordinator / "result.json").write_text(json.dumps(about))
    result = box._result(folder, StudyPlan(SITES), {}, {})
    assert result.took_part == {"charite": 3, "mayo": 1, "oslo": 2}
    console = Console(width=100, file=StringIO())
    console.print(box.table(result))
    text = console.file.getvalue()
    assert "3 of 3" in text and "1 of 3" in text and "2 of 3" in text and "nan" not in text


@pytest.mark.parametrize(("quorum", "needed"), [(0, 3), (2, 2)])
def test_the_box_waits_for_all_sites_unless_told_otherwise_and_says_for_whom(
    quorum, needed, folder, monkeypatch, capsys
):
    """Also at its start, before there is a federation."""
    made = []

    class Fed:
        def __init__(self, *pieces, rules, **settings):
            made.append(rules)
            if len(made) < 4:
                raise Paused(f"a run cannot begin. mayo: no reply in {len(made)} s")

        __enter__, evaluate = lambda self: self, lambda self, state: Evaluation({}, {}, np.zeros(3, np.int64))

        def __exit__(self, *error): ...

    study = SimpleNamespace(
        seed=0, **dict.fromkeys(("round", "batch_size", "epochs", "steps", "epsilon", "prepare"))
    )
    study.departments, study.features, study.held_out = False, {}, 0.0
    monkeypatch.setattr(lead, "Federation", Fed)
    monkeypatch.setattr(lead, "_AWAY_SECONDS", 0.0)
    monkeypatch.setattr(lead, "build", lambda *about: study)
    monkeypatch.setattr(
        lead,
        "fit",
        lambda *pieces, **how: SimpleNamespace(stopped="finished", state=SimpleNamespace(round=3)),
    )
    StudyPlan(SITES, quorum=quorum, rounds=3).write(folder.plan)
    (folder.coordinator / "roster.toml").write_text(f'[keys]\nmayo = "{SiteKey.make("mayo").public.text}"\n')
    SiteKey.make("coordinator").save(folder.coordinator)
    assert lead.lead(folder, None) == 0
    assert made[-1].needed(3) == needed and len(made) == 4
    assert capsys.readouterr().err.count("says: waiting: a run cannot begin. mayo: no reply in 1 s") == 1


def test_it_waits_as_long_as_rounds_are_done_and_then_gives_up(monkeypatch, capsys):
    monkeypatch.setattr(lead, "_AWAY_SECONDS", 0.02)
    monkeypatch.setattr(lead, "_PATIENCE_SECONDS", 0.1)
    tries = []

    def paused():
        tries.append(0)
        raise Paused(f"round {len(tries)}: mayo: no reply")

    with pytest.raises(Paused, match="mayo"):
        lead._patiently(paused, lambda: min(len(tries), 20))
    assert len(tries) > 20 and capsys.readouterr().err.count("waiting") == 1


@pytest.mark.parametrize(("done", "times"), [(lambda tries: 0, 1), (lambda tries: len(tries), 4)])
def test_what_one_try_said_the_next_does_not_say_again_unless_rounds_were_done(
    monkeypatch, capsys, done, times
):
    monkeypatch.setattr(lead, "_AWAY_SECONDS", 0.0)
    log, tries = logging.getLogger("fedjax_core"), []

    def do():
        tries.append(1)
        for _ in range(2):  # within one try what is said again is news, as where a site is away once more
            log.warning("no node for oslo in %d s", len(tries))
        if len(tries) < 4:
            raise Paused("2 of 3 sites are there")

    log.addHandler(lead._aloud)
    try:
        lead._patiently(do, lambda: done(tries))
    finally:
        log.removeHandler(lead._aloud)
    assert capsys.readouterr().err.count("no node for oslo") == 2 * times and len(tries) == 4
