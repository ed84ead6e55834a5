"""Formulas as in R: a formula's text and the levels of all sites' categories give the columns of one design
matrix for all sites.

    "died ~ age + C(sex)"  ─formulaic─►  terms  ─levels of all sites─►  names and expressions  ─►  X [rows, P] at each site

Names and order of the columns are those of statsmodels: `Intercept`, `C(sex)[T.M]`, `age:np.log(bmi)`. A text
column is a category, any other becomes one by `C(...)`, and `C(sex, Treatment('M'))` sets the reference
level. A category is coded without its reference where the columns before already span it (the rule of
Nathaniel Smith's patsy).
"""

import ast
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from fedjax_core.stats.expressions import COMPARISONS, Expression, check, columns, evaluate, parse
from fedjax_core.stats.table import Table


@dataclass(frozen=True)
class Design:
    """The columns of a design matrix: their names, and the expressions that compute them."""

    names: tuple[str, ...]
    expressions: tuple[Expression, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.expressions) or not all(isinstance(name, str) for name in self.names):
            raise ValueError("a design needs a name for each of its expressions")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "expressions", tuple(check(one) for one in self.expressions))

    @property
    def columns(self) -> tuple[str, ...]:
        """The table columns that the design reads."""
        return tuple(dict.fromkeys(name for one in self.expressions for name in columns(one)))

    def matrix(self, table: Table) -> np.ndarray:
        """[rows, P] float64; raises ValueError, naming the column, where a value is not finite."""
        x = (
            np.stack([evaluate(one, table) for one in self.expressions], axis=1)
            if self.names
            else np.zeros((table.rows, 0))
        )
        if not (fine := np.isfinite(x).all(axis=0)).all():
            bad = self.names[int(np.argmin(fine))]
            raise ValueError(
                f"{bad!r} is not finite in {int((~np.isfinite(x)).any(axis=1).sum())} rows, as a logarithm of 0 is: leave them out"
            )
        return x


@dataclass(frozen=True)
class Factor:
    """One factor of a term: a number, or a category of a column (or of a truth value) with its levels."""

    text: str
    expression: Expression
    category: str | None = None
    """The column of the category; "" for a truth value."""
    reference: str | None = None

    def coded(self, full: bool, levels: Mapping[str, Collection[str]]) -> list[tuple[str, Expression]]:
        """(name, expression) of each column of the factor."""
        if self.category is None:
            return [(self.text, self.expression)]
        if self.category == "":
            no: Expression = ["-", ["number", 1.0], self.expression]
            both = [(f"{self.text}[False]", no), (f"{self.text}[True]", self.expression)]
            return both if full else [(f"{self.text}[T.True]", self.expression)]
        these = list(levels[self.category])
        reference = these[0] if self.reference is None else self.reference
        if reference not in these:
            raise ValueError(
                f"{self.text}: {reference!r} is no level of {self.category!r}; there are {', '.join(these)}"
            )
        kept = [level for level in these if full or level != reference]
        return [
            (f"{self.text}[{'' if full else 'T.'}{level}]", ["is", self.category, level]) for level in kept
        ]


@dataclass(frozen=True)
class Formula:
    """A parsed formula: the outcomes on its left, separated by commas, and the terms on its right, each a
    tuple of factors."""

    text: str
    outcomes: tuple[Expression, ...]
    outcome_names: tuple[str, ...]
    terms: tuple[tuple[Factor, ...], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The table columns that the formula uses."""
        right = (factor.expression for term in self.terms for factor in term)
        return tuple(dict.fromkeys(name for one in (*self.outcomes, *right) for name in columns(one)))

    @property
    def categories(self) -> tuple[str, ...]:
        """The columns whose levels are needed, whatever their kind."""
        return tuple(
            dict.fromkeys(factor.category for term in self.terms for factor in term if factor.category)
        )

    def design(self, kinds: Mapping[str, str], levels: Mapping[str, Collection[str]]) -> Design:
        """The design of the right side, given each column's kind and the levels of all sites together."""
        terms = [tuple(_of_kind(factor, kinds) for factor in term) for term in self.terms]
        groups: dict[frozenset[str], list[tuple[Factor, ...]]] = {frozenset(): []}
        for term in terms:
            groups.setdefault(
                frozenset(factor.text for factor in term if factor.category is None), []
            ).append(term)
        expressions: dict[str, Expression] = {}
        for group in groups.values():
            used: set[frozenset[str]] = set()
            for term in sorted(group, key=len):
                for full in _contrasts(term, used):
                    expressions |= _columns(
                        [f for f in term if f.category is None or f.text in full], full, levels
                    )
        if rare := next(
            (name for name, these in levels.items() if len(these) < 2 and name in _used(terms)), None
        ):
            raise ValueError(
                f"{rare!r} has one level alone, {', '.join(levels[rare])!r}, at all sites together: take it out of the formula"
            )
        return Design(tuple(expressions), tuple(expressions.values()))


def read(text: str) -> Formula:
    """Parses a formula; raises ValueError, naming the part, where it is none."""
    left, tilde, right = text.partition("~")
    if not tilde or not right.strip():
        raise ValueError(f"{text!r} is no formula: write 'outcome ~ covariate + covariate', or 'outcome ~ 1'")
    outcomes = _outcomes(left.strip(), text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from formulaic.errors import FormulaSyntaxError
        from formulaic.parser import DefaultFormulaParser

        try:
            parsed = DefaultFormulaParser().get_terms(right.strip())
        except FormulaSyntaxError as error:
            plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours of a terminal
            raise ValueError(f"{text!r} is no formula: {plain}") from None
    terms = [[factor.expr for factor in term.factors if factor.expr != "1"] for term in parsed]
    return Formula(
        text, tuple(map(parse, outcomes)), tuple(outcomes), tuple(tuple(map(_factor, term)) for term in terms)
    )


def _outcomes(left: str, text: str) -> list[str]:
    if not left:
        return []
    try:
        node = ast.parse(left, mode="eval").body
    except SyntaxError:
        raise ValueError(
            f"{text!r}: {left!r} is no outcome; a column whose name is no plain word is written Q('its name')"
        ) from None
    return [ast.unparse(one) for one in (node.elts if isinstance(node, ast.Tuple) else [node])]


def _factor(text: str) -> Factor:
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return Factor(text, ["column", text])  # a name in backticks
    match node:
        case ast.Call(func=ast.Name(id="C"), args=[of, *more], keywords=[]) if len(more) <= 1:
            column = parse(ast.unparse(of))
            if column[0] != "column":
                raise ValueError(
                    f"{text!r}: C(...) makes a category of a column; {ast.unparse(of)!r} is none"
                )
            reference = _reference(more[0], text) if more else None
            return Factor(ast.unparse(node), column, column[1], reference)
    expression = parse(text)
    return Factor(ast.unparse(node), expression, "" if expression[0] in COMPARISONS else None)


def _reference(node: ast.expr, text: str) -> str:
    match node:
        case ast.Call(func=ast.Name(id="Treatment"), args=[ast.Constant(value=level)], keywords=[]):
            return str(level)
        case ast.Call(
            func=ast.Name(id="Treatment"),
            args=[],
            keywords=[ast.keyword(arg="reference", value=ast.Constant(value=level))],
        ):
            return str(level)
    raise ValueError(
        f"{text!r}: levels are compared with one of them, C(column, Treatment('level')); no other coding is known here"
    )


def _of_kind(factor: Factor, kinds: Mapping[str, str]) -> Factor:
    """The factor, made a category where its column is text."""
    name = factor.expression[1] if factor.expression[0] == "column" else None
    if factor.category is None and name is not None and kinds[name] == "text":
        return Factor(factor.text, factor.expression, name)
    return factor


def _used(terms: Sequence[Sequence[Factor]]) -> set[str]:
    return {factor.category for term in terms for factor in term if factor.category}


def _contrasts(term: Sequence[Factor], used: set[frozenset[str]]) -> list[dict[str, bool]]:
    """{category: whether all its levels are coded} for each block of columns that a term adds to the `used`
    ones."""
    categories = [factor.text for factor in term if factor.category is not None]
    subsets = [
        frozenset(one)
        for one in chain.from_iterable(combinations(categories, k) for k in range(len(categories) + 1))
    ]
    new = [one for one in subsets if one not in used]
    used.update(new)
    blocks = [dict.fromkeys((name for name in categories if name in one), False) for one in new]
    while (pair := _absorbed(blocks)) is not None:
        short, long, name = pair
        blocks = [one for one in blocks if one is not short and one is not long] + [long | {name: True}]
    return blocks


def _absorbed(blocks: Sequence[dict[str, bool]]) -> tuple[dict[str, bool], dict[str, bool], str] | None:
    """(short, long, category) of two blocks that become one with all levels of the category: long is short
    times the category without its reference."""
    for short in blocks:
        for long in blocks:
            extra = long.keys() - short.keys()
            if (
                len(extra) == 1
                and all(long.get(name) == full for name, full in short.items())
                and not long[(name := next(iter(extra)))]
            ):
                return short, long, name
    return None


def _columns(
    factors: Sequence[Factor], full: Mapping[str, bool], levels: Mapping[str, Collection[str]]
) -> dict[str, Expression]:
    """{name: expression} of the products of the factors' columns; the intercept where there are none."""
    products: list[tuple[str, Expression]] = [("Intercept", ["number", 1.0])]
    for i, factor in enumerate(factors):
        coded = factor.coded(full.get(factor.text, False), levels)
        products = coded if i == 0 else [(f"{a}:{b}", ["*", x, y]) for b, y in coded for a, x in products]
    return dict(products)
