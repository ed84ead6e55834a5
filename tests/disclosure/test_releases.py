"""The desk: each rule at its limit, what is recorded, and what a reader who subtracts is left with."""

import json

import numpy as np
import pytest

from fedjax_core.disclosure import Declined, Desk, OutputPolicy

PEOPLE = [f"person {i}" for i in range(60)]


def released(ask, *arguments, **rest):
    try:
        ask(*arguments, **rest)
    except Declined:
        return False
    return True


@pytest.mark.parametrize("n", (1, 4, 5, 6))
def test_people_are_counted_and_not_rows(n):
    rows = [person for person in PEOPLE[:n] for _ in range(3)]
    assert released(Desk(OutputPolicy(minimum=5)).count, "visits", rows) == (n >= 5)


@pytest.mark.parametrize("way", ("suppress", "round", "refuse"))
def test_no_table_is_followed_by_itself_with_one_person_more_or_less(way):
    rng = np.random.default_rng(1)
    # its smallest cell has fewer than 4, but where tables are refused
    a, b = (
        rng.integers(0, 3, 60),
        np.arange(60) % 2,
    )
    a = a if way != "refuse" else np.arange(60) % 3
    for person in range(0, 60, 7):
        desk = Desk(OutputPolicy(minimum=4, tables=way))
        rest = np.arange(60) != person
        desk.table("all", [a, b], PEOPLE)
        assert not released(desk.table, "less one", [a[rest], b[rest]], np.array(PEOPLE)[rest])
        more = [np.append(column, 0) for column in (a, b)]
        assert not released(desk.table, "one more", more, [*PEOPLE, "somebody new"])
        assert released(desk.table, "again", [a, b], PEOPLE)


def test_a_table_has_margins_and_public_levels():
    a, b = np.repeat([0, 1], 30), np.tile(["no", "yes"], 30)
    found = Desk(OutputPolicy()).table("a", [a, b], PEOPLE, levels=[[0, 1, 2], ["no", "yes"]])
    assert found.values.tolist() == [[15, 15, 30], [15, 15, 30], [0, 0, 0], [30, 30, 60]]
    with pytest.raises(ValueError, match="not among those given"):
        Desk(OutputPolicy()).table("a", [a], PEOPLE, levels=[[0]])
    with pytest.raises(ValueError, match="two cells"):
        Desk(OutputPolicy()).table("a", [[0, 1]], ["one", "one"])


def test_nothing_below_the_minimum_leaves_in_a_random_table():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        columns = [rng.choice(4, 60, p=(0.6, 0.25, 0.1, 0.05)), rng.integers(0, 3, 60)]
        desk = Desk(OutputPolicy(minimum=5))
        try:
            values = desk.table("t", columns, PEOPLE).values
        except Declined:
            continue
        assert not ((values > 0) & (values < 5)).any()
        assert desk.record[-1]["hidden"]["primary"] > 0 or not np.isnan(values).any()


def test_a_mean_is_declined_where_the_second_largest_could_guess_the_largest():
    for seed in range(40):
        values = np.random.default_rng(seed).pareto(0.7, 8)
        desk = Desk(OutputPolicy(minimum=5, p_percent=10, top_share=1.0))
        if not released(desk.mean, "cost", values, PEOPLE[:8]):
            continue
        largest, second = sorted(values)[::-1][:2]
        guess = values.sum() - second
        assert guess - largest >= 0.1 * largest * (1 - 1e-12)
    assert not released(Desk(OutputPolicy(minimum=3)).mean, "cost", np.array([100.0, 1, 1, 1]), PEOPLE[:4])


@pytest.mark.parametrize(("top", "expected"), ((60.0, True), (95.0, False)))
def test_a_mean_is_declined_where_two_people_have_most_of_the_sum(top, expected):
    values = np.append(np.full(2, top / 2), np.full(10, (100 - top) / 10))
    assert released(Desk(OutputPolicy(p_percent=0)).mean, "cost", values, PEOPLE[:12]) == expected


def test_contributions_are_of_people_so_that_many_rows_of_one_person_are_one():
    rows = ["one"] * 50 + PEOPLE[:5]
    assert not released(Desk(OutputPolicy()).mean, "cost", np.ones(55), rows)


@pytest.mark.parametrize(("parameters", "expected"), ((10, True), (19, True), (20, False)))
def test_a_fit_has_few_parameters_for_its_people(parameters, expected):
    assert released(Desk(OutputPolicy()).fit, "glm", np.zeros(3), PEOPLE, parameters=parameters) == expected


@pytest.mark.parametrize("n", (12, 13))
def test_a_fit_leaves_degrees_of_freedom(n):
    policy = OutputPolicy(residual=10, parameters=1.0)
    assert released(Desk(policy).fit, "glm", 0.0, PEOPLE[:n], parameters=3) == (n >= 13)


@pytest.mark.parametrize("rare", range(1, 8))
def test_a_fit_has_no_rare_level_of_outcome_or_factor(rare):
    outcome = (np.arange(60) < rare).astype(float)
    columns = {"died": outcome, "age": np.linspace(20, 90, 60)}
    assert released(Desk(OutputPolicy()).fit, "glm", 0.0, PEOPLE, parameters=2, columns=columns) == (
        rare >= 5
    )


def by_loops(time, event, at):
    """Kaplan and Meier, one time after another."""
    level = 1.0
    for t in sorted({t for t, e in zip(time, event, strict=True) if e and t <= at}):
        level *= 1 - sum(e for u, e in zip(time, event, strict=True) if u == t) / sum(u >= t for u in time)
    return level


def test_no_step_of_a_survival_curve_is_of_few_events_or_few_at_risk():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        time, event = rng.exponential(20, 60).round() + 1, rng.random(60) < 0.6
        shown, levels = Desk(OutputPolicy(minimum=5)).survival(
            "s", time, event, PEOPLE, np.arange(0, 100, 2.0)
        )
        edges = [-np.inf, *shown]
        assert len(shown) >= 2
        for before, at, level in zip(edges, shown, levels, strict=False):
            assert (event & (time > before) & (time <= at)).sum() >= 5 and (time > at).sum() >= 5
            assert level == pytest.approx(by_loops(time, event, at))


def test_a_survival_curve_is_not_followed_by_one_without_somebody():
    time, event = np.arange(60.0), np.ones(60, bool)
    desk = Desk(OutputPolicy(minimum=5))
    desk.survival("s", time, event, PEOPLE, np.arange(0, 60, 10.0))
    assert not released(desk.survival, "s", time[1:], event[1:], PEOPLE[1:], np.arange(0, 60, 10.0))
    assert not released(Desk(OutputPolicy()).survival, "s", time, ~event, PEOPLE, np.arange(0, 60, 10.0))
    with pytest.raises(ValueError, match="one record"):
        desk.survival("s", time, event, ["one"] * 60, time)


def test_a_factor_with_too_many_levels_and_a_histogram_with_too_many_bins_are_declined():
    desk = Desk(OutputPolicy(minimum=2))
    assert not released(
        desk.fit, "glm", 0.0, PEOPLE, parameters=2, columns={"ward": (np.arange(60) // 2).astype(str)}
    )
    values = np.linspace(0, 1, 60)
    assert not released(desk.histogram, "h", values, np.linspace(0, 1, 31), PEOPLE)
    assert desk.histogram("h", values, np.linspace(0, 1, 11), PEOPLE).values.tolist()[-1] == 60
    with pytest.raises(ValueError, match="outside"):
        desk.histogram("h", values, np.array([0.0, 0.5]), PEOPLE)


def test_extremes_are_declined_or_averages_of_the_minimum_of_people():
    values = np.arange(60.0)
    assert not released(Desk(OutputPolicy()).extremes, "age", values, PEOPLE)
    assert Desk(OutputPolicy(extremes="average")).extremes("age", values, PEOPLE) == (2.0, 57.0)


def test_every_decision_is_recorded_with_evidence_and_a_restart_remembers(tmp_path):
    desk = Desk(OutputPolicy(), folder=tmp_path / "desk", key=b"site")
    desk.count("everybody", PEOPLE)
    assert not released(desk.count, "few", PEOPLE[:3])
    again = Desk(OutputPolicy(), folder=tmp_path / "desk", key=b"site")
    assert [entry["decision"] for entry in again.record] == [
        "released",
        "declined",
    ] and again.record == desk.record
    assert again.record[1]["findings"] == [{"rule": "people", "measured": 3.0, "limit": 5.0, "holds": False}]
    assert not released(again.count, "less one", PEOPLE[1:])
    text = "".join(path.read_text() for path in (tmp_path / "desk").iterdir())
    assert "person 1" not in text
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "desk").iterdir())


def test_a_record_that_was_changed_is_found(tmp_path):
    desk = Desk(OutputPolicy(), folder=tmp_path)
    desk.count("a", PEOPLE)
    desk.count("b", PEOPLE)
    file = tmp_path / "releases.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(first), "name": "c"}), second]) + "\n")
    with pytest.raises(ValueError, match="was changed"):
        Desk(OutputPolicy(), folder=tmp_path)


def test_what_is_said_of_a_declined_result_has_no_number():
    with pytest.raises(Declined) as found:
        Desk(OutputPolicy(minimum=17)).count("few", PEOPLE[:13])
    assert str(found.value) == "declined: few (people)"


@pytest.mark.parametrize(
    "odd",
    ({"minimum": 1}, {"minimum": True}, {"top_share": 0.0}, {"tables": "hide"}, {"p_percent": float("nan")}),
)
def test_a_policy_out_of_range_is_refused(odd):
    with pytest.raises(ValueError, match=next(iter(odd))):
        OutputPolicy(**odd)
