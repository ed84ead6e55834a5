"""The soak of the consortium in a box: one run left alone, one in which things are killed, the same bits."""

import itertools
import tempfile

import pytest


@pytest.mark.slow
def test_a_run_in_which_things_are_killed_is_told_to_end_with_the_same_bits(capsys):
    import soak_box

    assert soak_box.main(soak_box.Settings(minutes=0.01, seed=3, rounds=120, apart=(0.5, 1.0))) == 0
    found = capsys.readouterr()
    assert "yes" in found.out and "seed 3:" in found.err and "seed 3: 0 killed" not in found.err


@pytest.mark.parametrize(
    ("ends", "told"), [(True, "1 commands, NOT the same bits"), (False, "20 commands, NO END: kills")]
)
def test_other_bits_and_no_end_are_told(ends, told, monkeypatch, tmp_path, capsys):
    import soak_box

    states = itertools.chain([["one"]], itertools.repeat(["other"]))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the folder stays, to be looked at
    monkeypatch.setattr(soak_box.subprocess, "run", lambda *about, **settings: None)
    monkeypatch.setattr(soak_box, "last", lambda folder, rounds: next(states))
    monkeypatch.setattr(soak_box, "attempt", lambda folder, settings, alone, draw, killed: ends)
    assert soak_box.main(soak_box.Settings(minutes=0.001)) == 1
    found = capsys.readouterr()
    assert "NO: " in found.out and told in found.err and len(list(tmp_path.iterdir())) == 1
