"""docs/evaluation.md runs as it is printed, and says what is so."""

import re

from tests.conftest import REPOSITORY


def test_the_page_runs_as_it_is_printed():
    codes = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "evaluation.md").read_text(), re.DOTALL)
    found = {}
    for code in codes:
        exec(code, found)
    assert "ill_3" in found["counted"].names(found["edges"]) and "ill_3" in found["task"].people
    left_out, (low, high) = found["left_out"], found["left_out"].prediction_interval
    assert (
        set(left_out.left_out) == set(found["names"])
        and low < left_out.interval[0] < left_out.estimate < left_out.interval[1] < high
    )
    assert found["auroc"].low < found["auroc"].value < found["auroc"].high and 0.7 < found["slope"] < 1.2
    covered = [(found["scores"](name) <= found["sure"].value).mean() for name in found["names"]]
    assert abs(sum(covered) / 5 - 0.9) < 0.01
