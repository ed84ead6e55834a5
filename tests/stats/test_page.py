"""docs/statistics.md runs as it is printed, and names every function and no other number of statistics than
there are."""

import re

from fedjax_core import stats
from fedjax_core.stats.messages import STATISTICS
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "statistics.md").read_text()


def test_the_page_runs_as_it_is_printed():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found = {}
    exec(code, found)
    assert found["fit"].rows == 400 and found["hazards"].coefficients.keys() == {"age", "sex[T.M]"}
    assert found["first"].smd.keys() == {"age", "sex"}
    assert abs(found["filled"].coefficients["age"] - found["apart"].coefficients["age"]) < 0.02
    assert abs(found["effect"].smd_after["age"]) < 1e-9 < found["filled"].missing_information["age"]
    inner = sorted(one.coefficients["age"] for one in found["each"])
    assert inner[0] < found["pooled"].estimate < inner[-1]


def test_the_page_has_every_function():
    functions = [name for name in stats.__all__ if name[0].islower()]
    assert [name for name in functions if f"`{name}(" not in PAGE] == []
    assert f"A site knows {len(STATISTICS)} statistics" in PAGE
