"""No set of releases tells of fewer than the minimum of people."""

import itertools
import time

import numpy as np
import pytest

from fedjax_core.disclosure import Guard

PEOPLE = range(24)


@pytest.mark.parametrize("person", PEOPLE)
def test_after_a_release_none_without_any_one_person_and_none_with_one_more(person):
    guard = Guard(5)
    assert guard.admit([PEOPLE])
    assert not guard.admit([set(PEOPLE) - {person}])
    assert not guard.admit([{*PEOPLE, f"new {person}"}])
    assert not guard.admit([{*PEOPLE, "new"} - {person}])  # one came, one left
    assert guard.admit([PEOPLE])  # the same again tells nothing


@pytest.mark.parametrize("gap", range(1, 9))
def test_two_releases_may_differ_by_the_minimum_of_people(gap):
    guard = Guard(5)
    assert guard.admit([PEOPLE])
    assert guard.admit([PEOPLE[gap:]]) == (gap >= 5)


def test_chains_of_releases_are_seen():
    guard = Guard(5)
    assert guard.admit([range(20)]) and guard.admit([range(10)]) and guard.admit([range(5, 15)])
    # everybody - the second half = 0..9; with 0..4 and 5..9 known, this would leave one person of 5..9
    assert not guard.admit([[*range(4), *range(10, 20)]])


def singled_out(sets, minimum):
    """Whether any group of fewer people than the minimum carries a combination of the sets: all groups, by
    rank."""
    people = sorted(set().union(*sets))
    matrix = np.array([[person in each for person in people] for each in sets], float)
    rank = np.linalg.matrix_rank(matrix)
    return any(
        np.linalg.matrix_rank(np.delete(matrix, group, axis=1)) < rank
        for group in itertools.combinations(range(len(people)), min(minimum - 1, len(people)))
    )


def test_the_guard_admits_just_what_going_through_all_groups_of_people_admits():
    decisions = []
    for seed in range(40):
        rng, guard, sets = np.random.default_rng(seed), Guard(3), []
        parts = rng.integers(0, 5, 11)  # people come in parts, so that some queries are safe
        for _ in range(4):
            asked = {
                int(p)
                for p in np.flatnonzero(np.isin(parts, rng.choice(5, rng.integers(1, 5), replace=False)))
            }
            if not asked:
                continue
            admitted = guard.admit([asked])
            assert admitted == (not singled_out([*sets, asked], 3))
            sets += [asked] * admitted
            decisions.append(admitted)
    assert 20 < sum(decisions) < len(decisions) - 20  # both happened


def test_the_cells_of_one_table_are_judged_together_but_not_across_tables():
    cells = {"a": range(2), "b": range(2, 12), "c": range(12, 22), "d": range(22, 24)}
    # two hidden cells of 2 people, whose gap can be told
    lines = [{*cells[i], *cells[j]} for i, j in ("ab", "cd", "ac", "bd")]
    assert Guard(5).admit(lines, joint=True) and not Guard(5).admit(lines)
    guard = Guard(5)
    assert guard.admit(lines, joint=True)
    assert not guard.admit([{*cells["a"], *cells["b"]} - {0}])
    assert not guard.admit([cells["b"]])  # which would give a


def test_where_there_are_too_many_groups_to_try_it_declines():
    people, rng = range(60), np.random.default_rng(0)
    guard = Guard(6, combinations=50)
    asked = [set(rng.choice(people, 30, replace=False).tolist()) for _ in range(12)]
    assert not all([guard.admit([each]) for each in asked])


def test_people_are_hashed_under_the_key_and_numbers_of_numpy_are_numbers():
    guard = Guard(2, key=b"secret")
    guard.admit([np.arange(3)])
    assert guard.released == [[guard._hashed([0, 1, 2])]] and guard.released != [
        [Guard(2)._hashed([0, 1, 2])]
    ]
    assert "1" not in guard.released[0][0]


def test_the_guard_of_two_large_tables_answers_at_once():
    rng, guard = np.random.default_rng(0), Guard(5)
    first, second = rng.integers(0, 60, 2500), rng.integers(0, 40, 2500)
    cells = [[np.flatnonzero(codes == code) for code in range(codes.max() + 1)] for codes in (first, second)]
    assert guard.admit(cells[0], joint=True)
    began = time.process_time()
    # thousands of atoms of one person, and nothing that cancels all others
    assert guard.admit(cells[1], joint=True)
    # seconds; whole singular vectors of thousands of atoms took minutes
    assert time.process_time() - began < 20


def test_records_of_one_person_in_two_sets_are_subtracted_as_records():
    """Rows of thirty people with two each; three of them have one on each side: the sides and the whole tell
    nothing of these three."""
    whole = [i for i in range(30) for _ in range(2)]
    side = [*whole[:20], 10, 11, 12]
    other = [10, 11, 12, *whole[26:]]
    guard = Guard(minimum=5)
    assert guard.admit([whole]) and guard.admit([side]) and guard.admit([other])
    assert not guard.admit([whole[:20]])  # side, less this, is a record each of three people
    again = Guard(minimum=5)
    again.restore(guard.saved())
    assert again.released == guard.released
