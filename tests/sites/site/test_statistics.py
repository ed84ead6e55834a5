"""What a site tells as a statistic: nothing of too few people, alone or by subtraction, by its columns and a
closed list of expressions."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from fedjax_core import stats
from fedjax_core.data.clients import Clients
from fedjax_core.disclosure import Desk
from fedjax_core.sites.policy import Statistics
from fedjax_core.sites.policy.enforcement import Declined, Withheld
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.site.held_out import persons_by_values
from fedjax_core.sites.site.statistics import sums
from fedjax_core.stats.base import HIDDEN
from fedjax_core.stats.formula import read
from fedjax_core.stats.lmm import Products
from fedjax_core.stats.survey import Survey

MINIMUM = 4
POLICY = Statistics(minimum=MINIMUM, columns=("age", "sex", "arm", "died", "days", "id", "grade"))


def table(n=60, seed=0, **more):
    draw = np.random.default_rng(seed)
    columns = {
        "age": draw.normal(60, 10, n), "sex": np.array(["F", "M"])[draw.integers(0, 2, n)], "arm": np.array(["c", "t"])[np.arange(n) % 2],
        "died": draw.integers(0, 2, n), "days": np.ceil(draw.exponential(50, n)), "id": np.arange(n), "salary": draw.pareto(1, n),
        "grade": np.array(["a", "b", "c"])[np.arange(n) % 3],
    }  # fmt: skip
    return columns | more


class AtOneSite:
    """A source of statistics: one site, without a federation around it."""

    def __init__(self, columns, policy=POLICY, people=None, desk=None):
        self.desk, self.policy, self.site_names, self.told = desk or Desk(policy), policy, ["oslo"], []
        clients = Clients.from_list([columns], ["oslo"], allow_nan=True)
        persons = persons_by_values(clients) if people is None else np.asarray(people)
        self.data = SimpleNamespace(raw=clients, persons=persons)

    def statistic(self, statistic):
        self.told.append(sums(statistic, self.data, "oslo", self.policy, lambda: self.desk)[0])
        return self.told[-1:]

    def tells(self, ask):
        try:
            ask(self)
        except Refused:
            return False
        return True


def products(formula, source):
    """The sums of a linear model that are told in one message."""
    asked = read(formula)
    known = stats.survey.survey(source, asked.columns, asked.categories)
    return source.statistic(
        Products(asked.design(known.kinds, known.levels), asked.outcomes[0], tuple(known.kinds))
    )[0]


QUESTIONS = {
    "survey": lambda source: source.statistic(Survey(("age", "sex"), ("sex",))),
    "products": lambda source: products("age ~ sex", source),
    "glm": lambda source: stats.glm("died ~ age + sex", source, family="binomial"),
    "cox": lambda source: stats.cox("days, died ~ age", source, strata="site"),
    "kaplan-meier": lambda source: stats.kaplan_meier("days, died ~ 1", source, grid=[20, 60]),
    "histogram": lambda source: stats.histogram(source, "age", [0, 50, 60, 70, 120]),
    "t-test": lambda source: stats.t_test("age ~ arm", source),
    "ordinal": lambda source: stats.ordinal("grade ~ age", source, levels=["a", "b", "c"]),
    "correlation": lambda source: stats.correlation(source, ["age", "days"]),
    "table 1": lambda source: stats.table_one(source, ["age", "sex"], by="arm"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_was_told_is_told_again_but_not_of_one_person_more_or_less(name):
    ask, columns, n = QUESTIONS[name], table(), 60
    for person in (0, 59):
        first = AtOneSite(columns)
        assert first.tells(ask) and first.tells(ask)
        rest = np.arange(n) != person
        assert not AtOneSite({k: x[rest] for k, x in columns.items()}, desk=first.desk).tells(ask)
        somebody = table(seed=9)
        more = {k: np.append(x, somebody[k][person]) for k, x in columns.items()}
        assert not AtOneSite(more, desk=first.desk).tells(ask)
        assert first.tells(ask)


@pytest.mark.parametrize("name", QUESTIONS)
def test_people_are_counted_and_not_rows(name):
    """Twenty rows each of three people are of too few, and of sixty people enough."""
    columns = table()
    assert AtOneSite(columns, people=np.arange(60)).tells(QUESTIONS[name])
    assert not AtOneSite(columns, people=np.arange(60) % 3).tells(QUESTIONS[name])


@pytest.mark.parametrize("tables", ("refuse", "suppress", "round"))
def test_no_count_below_the_minimum_leaves_and_none_can_be_calculated(tables):
    hidden = told = 0
    for seed in range(10):
        draw = np.random.default_rng(seed)
        columns = table(sex=draw.choice(["F", "M", "X"], 60, p=(0.5, 0.4, 0.1)))
        source = AtOneSite(columns, dataclasses.replace(POLICY, tables=tables))
        if not source.tells(lambda source: stats.table_one(source, ["sex"], by="arm")):
            continue
        told += 1
        for said in source.told:
            for word in ("levels", "groups", "counts.0"):
                found = np.asarray(said.get(word, [0]))
                assert not ((found > 0) & (found < MINIMUM)).any()
        cells = source.told[-1]["levels"]
        hidden += int((cells == HIDDEN).sum())
        true = np.array(
            [
                [
                    ((columns["arm"] == arm) & (columns["sex"] == sex)).sum()
                    for sex in np.unique(columns["sex"])
                ]
                for arm in "ct"
            ]
        )
        if tables == "refuse":
            np.testing.assert_array_equal(cells, true)
        else:
            assert (cells == HIDDEN).any() or tables == "round" or not ((true > 0) & (true < MINIMUM)).any()
        if tables == "suppress" and (cells == HIDDEN).any():
            assert widths(cells, true).min() >= MINIMUM
    assert told >= 2 and (hidden > 0) == (tables != "refuse")


def widths(cells, true):
    """How far apart the least and the most are that each hidden cell may have, given all margins, by trying
    all tables."""
    free = list(zip(*np.where(cells == HIDDEN), strict=True))
    rows, columns = true.sum(1), true.sum(0)
    possible = [[] for _ in free]
    for values in itertools.product(
        range(int(true[tuple(np.transpose(free))].sum()) + 1), repeat=len(free) - 1
    ):
        tried = np.where(cells == HIDDEN, 0, cells)
        for place, value in zip(free, values, strict=False):
            tried[place] = value
        tried[free[-1]] = true.sum() - tried.sum()
        if (tried >= 0).all() and (tried.sum(1) == rows).all() and (tried.sum(0) == columns).all():
            for i, place in enumerate(free):
                possible[i].append(tried[place])
    return np.array([max(each) - min(each) for each in possible if each])


@pytest.mark.parametrize(
    ("formula", "why"),
    [
        ("died ~ age + I(age + 1000 * (id == 7))", "adds columns to one another"),
        ("died ~ salary", "column 'salary'"),
        ("died ~ age + I(abs(age - 43))", "takes abs of more than a column"),
        ("died ~ np.log(age - 42.9)", "takes log of more than a column"),
        ("died ~ I(1 / age)", "divides by a column"),
        ("died ~ I(age ** 50)", "no power 2, 3 or 4"),
        ("died ~ I((age > 40) == (age < 50))", "compares something other than a column with a number"),
        ("I(age * age - id) ~ sex", "adds columns to one another"),
    ],
)
def test_what_is_not_on_the_lists_is_refused_by_name(formula, why):
    with pytest.raises(Declined, match=why) as refused:
        products(formula, AtOneSite(table()))
    assert not refused.value.of_data


@pytest.mark.parametrize(
    "formula",
    ["died ~ I(age * (id == 7))", "died ~ I(1 + 1000 * (id == 7)):age", "died ~ I(age > 78)", "died ~ np.exp(age)",
     "died ~ I(3 * (id < 2) * age)",
     "age ~ sex * arm * C(died)"],
)  # fmt: skip
def test_a_formula_that_singles_people_out_is_declined_for_a_reason_that_stays(formula):
    with pytest.raises(Withheld) as declined:
        products(formula, AtOneSite(table(seed=3)))
    assert declined.value.of_data


def test_two_thresholds_with_one_person_between_them_are_not_told():
    columns = table()
    low, high = np.sort(columns["age"])[[30, 31]]
    source = AtOneSite(columns)
    assert source.tells(lambda source: products(f"died ~ I(age > {low - 0.01})", source))
    assert not source.tells(lambda source: products(f"died ~ I(age > {(low + high) / 2})", source))


def test_coefficients_that_weigh_few_people_are_not_answered():
    source = AtOneSite(table())
    assert source.tells(lambda source: stats.glm("died ~ age", source, family="poisson"))
    step = dataclasses.replace(_step(source), beta=(0.0, 400.0))
    with pytest.raises(Withheld, match="weights"):
        source.statistic(step)


def _step(source):
    found = []
    asks = SimpleNamespace(statistic=lambda s: (found.append(s), source.statistic(s))[1], site_names=["oslo"])
    stats.glm("died ~ age", asks, family="poisson")
    return found[-1]


def test_one_person_with_most_of_a_sum_is_hidden_or_declined():
    columns = table(age=np.append(np.full(59, 1.0), 1e4))
    assert not AtOneSite(columns).tells(lambda source: products("died ~ age", source))
    shown = stats.table_one(AtOneSite(columns), ["age"])
    assert shown.counts["age"][""] == HIDDEN and "hidden" in shown.table()
    refusing = AtOneSite(columns, dataclasses.replace(POLICY, tables="refuse"))
    assert not refusing.tells(lambda source: stats.table_one(source, ["age"]))


def test_values_that_few_lack_are_not_told_by_two_fits():
    columns = table()
    columns["age"] = np.where(np.arange(60) < 2, np.nan, columns["age"])
    source = AtOneSite(columns)
    assert source.tells(lambda source: stats.glm("died ~ age", source, family="binomial", missing="drop"))
    assert not source.tells(lambda source: stats.glm("died ~ 1", source, family="binomial"))


def test_what_was_told_is_remembered_over_restarts_and_recorded_with_its_evidence(tmp_path):
    columns, rest = table(), np.arange(60) != 5
    QUESTIONS["products"](AtOneSite(columns, desk=Desk(POLICY, folder=tmp_path, key=b"of the site")))
    again = Desk(POLICY, folder=tmp_path, key=b"of the site")
    assert [line["decision"] for line in again.record] == ["released", "released"]
    assert {each["rule"] for each in again.record[-1]["findings"]} >= {
        "people",
        "parameters per person",
        "dominance NK",
        "differencing",
    }
    less = AtOneSite({k: x[rest] for k, x in columns.items()}, desk=again)
    assert not less.tells(QUESTIONS["products"])
    assert Desk(POLICY, folder=tmp_path, key=b"of the site").record[-1]["decision"] == "declined"
    assert AtOneSite(columns, desk=again).tells(QUESTIONS["products"])


def test_a_person_with_records_on_both_sides_of_an_outcome_is_nobody_who_is_singled_out():
    """Two visits each of thirty people, of whom two died in one of theirs: yes and no together are all
    records, and tell nothing more."""
    people = np.repeat(np.arange(30), 2)
    died = np.where(people < 15, 1, 0)
    died[[0, 2]] = 0
    source = AtOneSite(table(died=died), people=people)
    assert source.tells(lambda source: products("died ~ age", source))
    rest = people != 7
    assert not AtOneSite(
        {k: x[rest] for k, x in table(died=died).items()}, people=people[rest], desk=source.desk
    ).tells(lambda source: products("died ~ age", source))
