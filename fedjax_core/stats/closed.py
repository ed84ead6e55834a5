"""The closed list of expressions that a site computes under its policy: they use only columns that the policy
lists, and single nobody out.

    column, number                      a column that is listed
    log(column), exp, sqrt, ...         of the column itself, or of it times a number: days / 365
    column ** 2, 3, 4                   also of column + number
    column > 5, column == 'M'           a truth value; both of its groups need enough people
    a * b, a + 5, 1 - a, a / 10         whose parts are on this list; a sum or quotient of two columns is not

A number that is added within a function, as in `abs(age - 43)`, could put a peak where one person is; a sum
such as `age + 1000 * (id == 7)` could hide one person in a column of many values. A study that needs more
makes it a column of its data by a mapping, which the site's staff can read.

>>> from fedjax_core.stats.expressions import parse
>>> refused(parse("np.log(days / 365) * (sex == 'M')"), {"days", "sex"}) is None
True
>>> refused(parse("age + 1000 * (id == 7)"), {"age", "id"})
"'age + 1000 * (id == 7)' adds columns to one another"
>>> refused(parse("age * salary"), {"age"})
"the column 'salary' is not listed"
"""

from collections.abc import Collection, Iterator

from fedjax_core.stats.expressions import COMPARISONS, Expression

FUNCTIONS = ("abs", "exp", "log", "log10", "log1p", "sqrt")
POWERS = (2.0, 3.0, 4.0)
_ORDER = {"<", "<=", ">", ">=", "==", "!="}


def refused(expression: Expression, columns: Collection[str]) -> str | None:
    """Why the expression is not on the list; None where it is."""
    kind, *rest = expression
    if kind == "number":
        return None
    if kind in ("column", "is", "is not"):
        return None if rest[0] in columns else f"the column {rest[0]!r} is not listed"
    if kind in FUNCTIONS:
        return (
            refused(rest[0], columns)
            if _scaled(rest[0])
            else f"{written(expression)!r} takes {kind} of more than a column"
        )
    if kind == "**":
        fine = _moved(rest[0]) and rest[1][0] == "number" and rest[1][1] in POWERS
        return (
            refused(rest[0], columns)
            if fine
            else f"{written(expression)!r} is no power 2, 3 or 4 of a column"
        )
    if kind in _ORDER:
        sides = [one for one in rest if one[0] != "number"]
        if len(sides) != 1 or not _moved(sides[0]):
            return f"{written(expression)!r} compares something other than a column with a number"
        return refused(sides[0], columns)
    if (
        kind == "*"
        or (kind in ("+", "-") and "number" in (rest[0][0], rest[1][0]))
        or (kind == "/" and rest[1][0] == "number")
    ):
        return refused(rest[0], columns) or refused(rest[1], columns)
    return (
        f"{written(expression)!r} {'divides by a column' if kind == '/' else 'adds columns to one another'}"
    )


def comparisons(expression: Expression) -> Iterator[Expression]:
    """The comparisons within the expression, which are truth values."""
    if expression[0] in COMPARISONS:
        yield expression
    elif expression[0] not in ("number", "column"):
        for one in expression[1:]:
            yield from comparisons(one)


def written(expression: Expression) -> str:
    """The expression as a person writes it."""
    kind, *rest = expression
    if kind == "number":
        return f"{rest[0]:g}"
    if kind == "column":
        return str(rest[0])
    if kind in ("is", "is not"):
        return f"({rest[0]} {'==' if kind == 'is' else '!='} {rest[1]!r})"
    if len(rest) == 1:
        return f"{kind}({written(rest[0])})"
    text = f"{written(rest[0])} {kind} {written(rest[1])}"
    return f"({text})" if kind in _ORDER else text


def _scaled(expression: Expression) -> bool:
    """Whether it is a column, or one times a number."""
    kind, *rest = expression
    if kind == "*":
        return sorted(one[0] for one in rest) == ["column", "number"]
    return kind == "column" or (kind == "/" and rest[0][0] == "column" and rest[1][0] == "number")


def _moved(expression: Expression) -> bool:
    """Whether it is a column, or one with numbers added and multiplied."""
    kind, *rest = expression
    if kind == "column":
        return True
    if kind in ("+", "-", "*"):
        return (rest[0][0] == "number" and _moved(rest[1])) or (rest[1][0] == "number" and _moved(rest[0]))
    return kind == "/" and rest[1][0] == "number" and _moved(rest[0])
