"""For everything that the desk releases: not again without one person or with one more, and no mixture tells
anything of few people."""

import itertools

import numpy as np
import pytest

from fedjax_core.disclosure import Declined, Desk, OutputPolicy

N = 60
DRAW = np.random.default_rng(8)
PEOPLE = np.array([f"person {i}" for i in range(N + 1)])
VALUES, TIME = DRAW.uniform(10, 20, N + 1), np.arange(N + 1) % 12 + 1.0
GROUP, WARD = np.arange(N + 1) % 3, np.arange(N + 1) % 2
POLICY = {"minimum": 4, "extremes": "average"}
ASK = {
    "count": lambda desk, rows: desk.count("q", PEOPLE[rows]),
    "mean": lambda desk, rows: desk.mean("q", VALUES[rows], PEOPLE[rows]),
    "extremes": lambda desk, rows: desk.extremes("q", VALUES[rows], PEOPLE[rows]),
    "table": lambda desk, rows: desk.table("q", [GROUP[rows], WARD[rows]], PEOPLE[rows]),
    "histogram": lambda desk, rows: desk.histogram(
        "q", VALUES[rows], np.array([10.0, 14, 17, 20]), PEOPLE[rows]
    ),
    "survival": lambda desk, rows: desk.survival(
        "q", TIME[rows], WARD[rows] == 0, PEOPLE[rows], np.array([4.0, 8.0])
    ),
    "fit": lambda desk, rows: desk.fit(
        "q", np.zeros(2), PEOPLE[rows], parameters=2, columns={"died": WARD[rows]}
    ),
    "sums": lambda desk, rows: desk.sums("q", [], {"age": [PEOPLE[rows]]}, None),
}
ALL = np.arange(N)


def released(desk, kind, rows):
    try:
        ASK[kind](desk, rows)
    except Declined:
        return False
    return True


@pytest.mark.parametrize("way", ("suppress", "round", "refuse"))
@pytest.mark.parametrize("kind", ASK)
def test_no_release_is_followed_by_itself_without_any_one_person_or_with_one_more(kind, way):
    desk = Desk(OutputPolicy(tables=way, **POLICY))
    assert released(desk, kind, ALL)
    for person in range(N):
        assert not released(desk, kind, np.delete(ALL, person)), person
    assert not released(desk, kind, np.arange(N + 1))
    assert released(desk, kind, ALL) and released(desk, kind, DRAW.permutation(ALL))


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.permutations([kind for kind in ASK if kind != "sums"], 2))
)
def test_no_release_is_followed_by_another_kind_without_one_person(first, second):
    desk = Desk(OutputPolicy(**POLICY))
    assert released(desk, first, ALL)
    assert not any(released(desk, second, np.delete(ALL, person)) for person in range(0, N, 9))
    assert not released(desk, second, np.arange(N + 1))


@pytest.mark.parametrize("kind", ASK)
@pytest.mark.parametrize("people", (1, 2, 3))
def test_nothing_of_fewer_people_than_the_minimum_leaves(kind, people):
    rows = np.repeat(np.arange(people), 10) if kind not in ("survival",) else np.arange(people)
    assert not released(Desk(OutputPolicy(**POLICY)), kind, rows)


@pytest.mark.parametrize("seed", range(12))
def test_a_hidden_cell_is_told_by_no_total_and_no_complement(seed):
    """After a table the people of a row or a column may be counted, as its margins; the small cell and what
    is beside it may not."""
    draw = np.random.default_rng(seed)
    a, b = draw.choice(3, N, p=(0.5, 0.3, 0.2)), draw.choice(3, N, p=(0.6, 0.3, 0.1))
    small = [(i, j) for i in range(3) for j in range(3) if 0 < ((a == i) & (b == j)).sum() < 5]
    desk = Desk(OutputPolicy(minimum=5))
    try:
        values = desk.table("t", [a, b], PEOPLE[:N], [range(3), range(3)]).values
    except Declined:
        return
    assert not ((values > 0) & (values < 5)).any()
    for i, j in small:
        assert np.isnan(values[i, j])
        cell = (a == i) & (b == j)
        for whole, total in (
            (a == i, values[i, -1]),
            (b == j, values[-1, j]),
            (np.ones(N, bool), values[-1, -1]),
        ):
            assert not released(desk, "count", np.flatnonzero(cell))
            assert not released(desk, "count", np.flatnonzero(whole & ~cell)) or np.isnan(total)


@pytest.mark.parametrize("seed", range(12))
def test_of_no_few_people_is_anything_a_sum_of_releases(seed):
    """Each group of fewer than the minimum is tried: a combination of what left that is 0 for all others
    would lower the rank by theirs."""
    draw, people, minimum = np.random.default_rng(seed), 11, 3
    desk = Desk(OutputPolicy(minimum=minimum, p_percent=0, top_share=1.0, parameters=1.0, residual=0))
    left = []
    for _ in range(25):
        rows = np.flatnonzero(draw.uniform(size=people) < 0.6)
        if released(desk, draw.choice(["count", "mean", "fit"]), rows):
            left.append(np.isin(np.arange(people), rows) * 1.0)
    told = np.array(left)
    assert len(left) >= 2
    for k in range(1, minimum):
        for few in itertools.combinations(range(people), k):
            assert np.linalg.matrix_rank(told) == np.linalg.matrix_rank(np.delete(told, few, axis=1)), few
