"""Paths into FHIR resources, a part of FHIRPath: they select a column's value from each record, and are data,
never code.

    subject.reference.replace('Patient/', '')            names, one after the other; lists are followed
    code.coding.where(system = 'http://loinc.org').code  the elements that meet a condition
    value.ofType(Quantity).value                         one of several types; or valueQuantity.value
    name[0].given.first()                                also last(), exists(), count(), not(), 'a' & 'b', =, !=

As in FHIRPath, a missing element is an empty list, comparing with it gives one too, and = compares whole
lists. https://hl7.org/fhirpath/N1/

>>> values(parse("coding.where(system = 's').code"), {"coding": [{"system": "s", "code": "a"}, {"system": "t", "code": "b"}]})
['a']
>>> parse("name.delete()")
Traceback (most recent call last):
ValueError: "name.delete()" is no path that is understood at 'delete': there are where, ofType, replace, first, last, exists, count, not
"""

import re
from collections.abc import Iterator
from typing import Any

Path = list[Any]
"""["path", step, ...], ["text", value] or [operator, left, right]; a step is (kind, its argument)."""

_ARGUMENTS = {"where": 1, "ofType": 1, "replace": 2, "first": 0, "last": 0, "exists": 0, "count": 0, "not": 0}
_TOKEN = re.compile(r"\s*(?:'((?:[^'\\]|\\.)*)'|([A-Za-z_]\w*)|(\d+(?:\.\d+)?)|(!=|[=&.()\[\],]))")
_OPERATORS = ("=", "!=", "&")


def parse(text: str) -> Path:
    """Parses a path from text; raises ValueError, naming the place, for anything outside the language."""
    tokens, at = [], 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            raise _wrong(text, text[at:].strip()[0])
        kind = ("text", "name", "number", "sign")[found.lastindex - 1] if found.lastindex else "sign"
        tokens.append((kind, found[found.lastindex or 0]))
        at = found.end()
    reader = _Reader(text, tokens)
    path = reader.expression()
    if reader.tokens:
        raise _wrong(text, reader.tokens[0][1])
    return path


def values(path: Path, record: Any) -> list[Any]:
    """The values that a path selects in a record: a list, empty where there are none."""
    kind, *rest = path
    if kind == "text":
        return list(rest)
    if kind == "path":
        found = [record]
        for i, (what, about) in enumerate(rest):
            found = list(_step(found, what, about, first=i == 0))
        return found
    left, right = (values(one, record) for one in rest)
    if kind == "&":
        return ["".join(_text(one) for one in (*left, *right))]
    return [(left == right) == (kind == "=")] if left and right else []


def _step(found: list[Any], kind: str, about: Any, *, first: bool) -> Iterator[Any]:
    match kind:
        case "name":
            for one in found:
                if first and isinstance(one, dict) and one.get("resourceType") == about:
                    yield one  # a path may begin with the resource's own name
                elif isinstance(one, dict) and about in one:
                    yield from one[about] if isinstance(one[about], list) else [one[about]]
        case "at":
            yield from found[about : about + 1]
        case "where":
            yield from (one for one in found if values(about[0], one) == [True])
        case "replace":
            yield from (_text(one).replace(about[0], about[1]) for one in found)
        case "first":
            yield from found[:1]
        case "last":
            yield from found[-1:]
        case "exists":
            yield bool(found)
        case "count":
            yield len(found)
        case "not":
            yield from (not one for one in found[:1])


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Reader:
    """Reads an expression from tokens, from the left."""

    def __init__(self, text: str, tokens: list[tuple[str, str]]) -> None:
        self.text, self.tokens = text, tokens

    def expression(self) -> Path:
        left = self.operand()
        while self.tokens and self.tokens[0][1] in _OPERATORS and self.tokens[0][0] == "sign":
            sign = self.tokens.pop(0)[1]
            left = [sign, left, self.operand()]
        return left

    def operand(self) -> Path:
        kind, what = self.take()
        if kind == "text":
            return ["text", re.sub(r"\\(.)", r"\1", what)]
        if kind == "number":
            return ["text", float(what) if "." in what else int(what)]
        if kind == "name" and what in ("true", "false"):
            return ["text", what == "true"]
        if kind != "name":
            raise _wrong(self.text, what)
        steps = self.step(what)
        while self.tokens and self.tokens[0] == ("sign", "."):
            self.take()
            kind, what = self.take()
            if kind != "name":
                raise _wrong(self.text, what)
            if what == "ofType" and self.tokens[:1] == [("sign", "(")]:
                if steps[-1][0] != "name":
                    raise _wrong(self.text, what)
                kind = self.arguments(what)[0]
                steps[-1] = ("name", steps[-1][1] + kind[0].upper() + kind[1:])
            else:
                steps += self.step(what)
        return ["path", *steps]

    def step(self, name: str) -> list[tuple[str, Any]]:
        if self.tokens[:1] == [("sign", "(")]:
            if name not in _ARGUMENTS:
                raise _wrong(self.text, name)
            found: list[tuple[str, Any]] = [(name, self.arguments(name))]
        else:
            found = [("name", name)]
        if self.tokens[:1] == [("sign", "[")]:
            self.take()
            kind, at = self.take()
            if kind != "number" or "." in at or self.take()[1] != "]":
                raise _wrong(self.text, at)
            found.append(("at", int(at)))
        return found

    def arguments(self, name: str) -> list[Any]:
        self.take()
        found: list[Any] = []
        while self.tokens and self.tokens[0] != ("sign", ")"):
            found.append(self.expression())
            if self.tokens[:1] == [("sign", ",")]:
                self.take()
        self.take()
        if len(found) != _ARGUMENTS[name]:
            raise _wrong(self.text, name)
        if name == "replace" and not all(one[0] == "text" and isinstance(one[1], str) for one in found):
            raise _wrong(self.text, name)
        if name == "ofType" and [step[0] for step in found[0][1:]] != ["name"]:
            raise _wrong(self.text, name)
        if name == "ofType":
            return [found[0][1][1]]
        return [one[1] for one in found] if name == "replace" else found

    def take(self) -> tuple[str, str]:
        if not self.tokens:
            raise _wrong(self.text, "its end")
        return self.tokens.pop(0)


def _wrong(text: str, at: str) -> ValueError:
    return ValueError(f'"{text}" is no path that is understood at {at!r}: there are {", ".join(_ARGUMENTS)}')
