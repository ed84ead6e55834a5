"""A consortium's folder is made once, and keeps what it was made with."""

import json
from dataclasses import replace

import pytest

from fedjax_core.cli import main
from fedjax_core.consortium.processes import Part
from fedjax_core.consortium.setup import Folder, prepare


def test_a_folder_keeps_what_it_was_made_with_but_for_more_rounds(tmp_path):
    folder = Folder(tmp_path / "box")
    plan, new = prepare(folder, sites=2, rounds=3)
    assert new and prepare(folder, sites=2, rounds=5) == (replace(plan, rounds=5), False)
    with pytest.raises(ValueError, match=r"was made with 2 sites, not 4 and quorum 0, not 2: choose another folder"):
        prepare(folder, sites=4, quorum=2)
    (folder.coordinator / "run").mkdir()
    records = [{"kind": "train", "round": 1}, {"kind": "train", "round": 2}, {"kind": "eval", "round": 2}]
    (folder.coordinator / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(ValueError, match=r"has 2 rounds already, more than 1: ask for as many"):
        prepare(folder, rounds=1)
    assert prepare(folder, rounds=2)[0].rounds == 2 and prepare(folder)[0].rounds == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounds": 0}, "rounds= must be a whole number of at least 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every= must be a whole number of at least 1, got 0"),
        ({"sites": 2, "quorum": 3}, "quorum=3 of 2 sites"),
        ({"study": "nowhere:study"}, "no module 'nowhere' here"),
        ({"arguments": {"rate": 1}}, "does not take the arguments"),
    ],
)
def test_what_cannot_be_leaves_no_folder_behind(settings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        prepare(Folder(tmp_path / "box"), **settings)
    assert not (tmp_path / "box").exists()


def test_arguments_that_are_no_json_are_refused_by_name(tmp_path, capsys):
    for text in ("{lr: 3}", "[3]", "3"):
        assert main(["consortium", "run", str(tmp_path / "box"), "--arguments", text]) == 1
        assert f"--arguments should be a JSON object, such as '{{\"lr\": 0.05}}'; got '{text}'" in capsys.readouterr().err


def test_the_last_words_of_a_part_are_its_error_and_not_our_code(tmp_path):
    log = tmp_path / "coordinator.log"
    log.write_text('Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    fail()\n\nValueError: too few rounds\n')
    assert Part("coordinator", log, None).last_words() == "ValueError: too few rounds"
