"""Which tests are long, by what they were measured to take: `long.txt`, whose tests run with `--long`, and
with `--slow`.

The suite that runs by default is to stay within ten minutes of processor time. So each test that took more
than a second is long, but for the quickest case of each function where that took less than two and a half. Of
the zoo's entries three run by default.

    bash scripts/test.sh --long --costs=FILE        what each test takes, on a machine that has compiled nothing
    python -m tests.long FILE                       writes long.txt again
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.slow import LONG_LIST

SECONDS, QUICKEST_SECONDS = 1.0, 2.5
# An entry's tests share its compiled rounds, so that the first of them has the cost of all: they go together.
BY_DEFAULT = ("fedavg", "ifca", "trimmed mean")  # one model, several, and a rule that is no sum
TOGETHER = ("tests/test_contracts.py", "tests/test_backends.py", "tests/test_round_contracts.py")


def function_and_case(test: str) -> tuple[str, str]:
    """(path::function, what its brackets hold)."""
    function, _, case = test.partition("[")
    return function, case.removesuffix("]")


def chosen(costs: Mapping[str, float]) -> set[str]:
    """The long ones of tests that took these seconds.

    >>> sorted(chosen({"tests/a.py::f[1]": 4.0, "tests/a.py::f[2]": 2.0, "tests/a.py::g": 9.0, "tests/a.py::h": 0.1}))
    ['tests/a.py::f[1]', 'tests/a.py::g']
    """
    functions: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for test, seconds in costs.items():
        functions[function_and_case(test)[0]].append((seconds, test))
    found: set[str] = set()
    for cases in functions.values():
        quickest = min(cases)
        found |= {test for seconds, test in cases if seconds > SECONDS and (seconds, test) != quickest}
        found |= {quickest[1]} if quickest[0] > QUICKEST_SECONDS else set()
    entries: dict[str, set[str]] = defaultdict(set)
    for test in costs:
        if test.startswith(TOGETHER) and (case := function_and_case(test)[1]):
            entries[re.sub(r"-\d+$", "", case)].add(test)  # without a number of lanes
    for entry, its in entries.items():
        found -= its
        found |= its if entry not in BY_DEFAULT and max(costs[test] for test in its) > SECONDS else set()
    return {test for test in found if test.startswith("tests/")}


def read(costs: Iterable[str]) -> dict[str, float]:
    """{test: seconds} of the lines that `--costs` writes."""
    parts = (line.strip().split("  ", 1) for line in costs)
    return {test: float(seconds) for seconds, test in parts}


if __name__ == "__main__":
    taken = read(Path(sys.argv[1]).read_text().splitlines())
    long = chosen(taken)
    LONG_LIST.write_text("".join(f"{test}\n" for test in sorted(long)))
    left = sum(taken.values()) - sum(taken[test] for test in long)
    print(
        f"{len(long)} of {len(taken)} tests are long; the others took {left / 60:.1f} of {sum(taken.values()) / 60:.1f} minutes"
    )
