"""The study of compression both ways, in its quick form: the bytes are those of the stages."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("experiments", "scripts"):
            patch.syspath_prepend(Path(__file__).parents[2] / folder)
        import both_ways

        yield both_ways


@pytest.mark.slow  # two programs to compile
def test_the_quick_form_prints_bytes_and_accuracy(study, data_dir, monkeypatch, capsys):
    monkeypatch.setenv("FEDJAX_CORE_DATA", str(data_dir))
    study.main(study.Settings(quick=True, ways=("float32", "EDEN 2 bits, model 4 bits")))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    whole = 4 * (784 * 16 + 16 + 16 * 10 + 10)
    assert rows[0][1:4] == [f"{whole:,}", f"{whole:,}", "1/1.0"]
    up, down = (int(rows[1][i].replace(",", "")) for i in (1, 2))
    rows_of_8192 = 2  # that 12,730 numbers take, each with a scale; and one seed
    assert (up, down) == tuple(rows_of_8192 * (8192 * bits / 8 + 4) + 4 for bits in (2, 4))
    assert all(0 <= float(row[-1].strip("| ")) <= 100 for row in rows)
