"""The measurement of a large frozen body, with a small one."""

from pathlib import Path

import pytest


@pytest.mark.parametrize("trained", ["factors", "head"])
def test_the_plan_counts_the_body_and_rounds_train(trained, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "experiments")
    import large_body

    large_body.main(large_body.Settings(width=256, layers=2, trained=trained, rank=2, rounds=1))
    printed = capsys.readouterr().out
    body = 2 * 256 * 256 + (
        0 if trained == "head" else 256 * 10
    )  # in 16 bits; the factors' scale is a float32
    constants = next(line for line in printed.splitlines() if line.startswith("constants"))
    assert constants == f"{'constants':<14}{(2 * body + 4 * (trained == 'factors')) / 1e6:>12,.2f} MB"
    assert "round 0, loss" in printed and "nan" not in printed
