"""The log has every round once, whatever happened on the way."""

import json
import math

import pytest

from fedjax_core.run.log import Log, read_records


def write(run_dir, first, last, done=0, **settings):
    with Log(run_dir, rounds=last, done=done, **{"progress": False, **settings}) as log:
        for round in range(first, last + 1):
            log.write(round, "train", {"loss": 1.0 / round, "examples": 4.0})
        log.sync()
        return log.records


def events(run_dir):
    """(step, {tag: value}) of what TensorBoard shows: a later session's start forgets the steps from its own
    on."""
    from tensorboardX.proto.event_pb2 import Event

    shown = []
    for path in sorted((run_dir / "events").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            size = int.from_bytes(raw[at : at + 8], "little")
            event = Event.FromString(raw[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                shown = [(step, values) for step, values in shown if step < event.step]
            elif event.HasField("summary"):
                shown.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
    return shown


def test_lines_are_flat_json_and_numbers_that_are_not_finite_are_null(tmp_path):
    with Log(tmp_path, rounds=1, progress=False) as log:
        log.write(1, "train", {"loss": math.nan, "examples": 2.0})
        log.write(1, "eval", {"loss": math.inf})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [
        '{"round": 1, "kind": "train", "loss": null, "examples": 2.0}',
        '{"round": 1, "kind": "eval", "loss": null}',
    ]
    assert math.isnan(read_records(tmp_path / "metrics.jsonl")[0]["loss"])


def test_on_resume_later_rounds_are_cut_everywhere(tmp_path, monkeypatch):
    write(tmp_path, 1, 7)
    monkeypatch.setattr("os.getpid", lambda: 1)  # another process, maybe in the same second
    records = write(tmp_path, 5, 9, done=4)
    assert [record["round"] for record in records] == list(range(1, 10))
    assert [
        json.loads(line)["round"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ] == list(range(1, 10))
    assert [step for step, _ in events(tmp_path)] == list(range(1, 10))
    assert events(tmp_path)[3][1] == {"train/loss": 0.25, "train/examples": 4.0}


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
    write(tmp_path, 1, 3)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"round": 4, "kind": "tr')
    assert [record["round"] for record in write(tmp_path, 4, 5, done=3)] == [1, 2, 3, 4, 5]


def test_missing_rounds_are_told(tmp_path, caplog):
    write(tmp_path, 2, 3)
    write(tmp_path, 4, 4, done=3)
    assert "metrics.jsonl lacks 1 of the 3 rounds done" in caplog.text


def test_a_full_disk_is_told_with_the_way_out(tmp_path):
    said = r"could not write /dev/full .*The checkpoints are as they were: free some space and start again"
    with (
        pytest.raises(OSError, match=said),
        open("/dev/full", "w", buffering=1) as full,
        Log(tmp_path, rounds=1, progress=False) as log,
    ):
        log._file.close()
        log._file = full
        log.write(1, "train", {"loss": 1.0})


def test_without_a_terminal_the_first_rounds_and_the_last_are_shown(tmp_path, capsys):
    """As in a notebook, a pipe, or under nohup."""
    write(tmp_path, 1, 9, progress=True)
    shown = capsys.readouterr()
    assert [line.split(":")[0] for line in shown.err.splitlines()] == [
        f"round {n} of 9" for n in (1, 2, 3, 9)
    ]
    assert "round 2 of 9: loss 0.5, " in shown.err and "examples/s" in shown.err and not shown.out


def test_without_a_terminal_one_line_now_and_then(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedjax_core.run.log._LINE_EVERY_SECONDS", 0.0)
    write(tmp_path, 1, 6, progress=True)
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_without_progress_nothing_is_shown(tmp_path, capsys):
    write(tmp_path, 1, 9, progress=False)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    write(None, 1, 3, progress=True)
    shown = capsys.readouterr()
    assert "3/3" in shown.err and "0.3333" in shown.err and "examples/s" in shown.err and not shown.out
