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
    tokens, position = [], 0
    while text[position:].strip():
        token = _TOKEN.match(text, position)
        if token is None:
            raise _wrong(text, text[position:].strip()[0])
        kind = ("text", "name", "number", "sign")[token.lastindex - 1] if token.lastindex else "sign"
        tokens.append((kind, token[token.lastindex or 0]))
        position = token.end()
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
        elements = [record]
        for i, (what, argument) in enumerate(rest):
            elements = list(_step(elements, what, argument, first=i == 0))
        return elements
    left, right = (values(one, record) for one in rest)
    if kind == "&":
        return ["".join(_text(one) for one in (*left, *right))]
    return [(left == right) == (kind == "=")] if left and right else []


def _step(elements: list[Any], kind: str, argument: Any, *, first: bool) -> Iterator[Any]:
    match kind:
        case "name":
            for one in elements:
                if first and isinstance(one, dict) and one.get("resourceType") == argument:
                    yield one  # a path may begin with the resource's own name
                elif isinstance(one, dict) and argument in one:
                    yield from one[argument] if isinstance(one[argument], list) else [one[argument]]
        case "at":
            yield from elements[argument : argument + 1]
        case "where":
            yield from (one for one in elements if values(argument[0], one) == [True])
        case "replace":
            yield from (_text(one).replace(argument[0], argument[1]) for one in elements)
        case "first":
            yield from elements[:1]
        case "last":
            yield from elements[-1:]
        case "exists":
            yield bool(elements)
        case "count":
            yield len(elements)
        case "not":
            yield from (not one for one in elements[:1])


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
            steps: list[tuple[str, Any]] = [(name, self.arguments(name))]
        else:
            steps = [("name", name)]
        if self.tokens[:1] == [("sign", "[")]:
            self.take()
            kind, index = self.take()
            if kind != "number" or "." in index or self.take()[1] != "]":
                raise _wrong(self.text, index)
            steps.append(("at", int(index)))
        return steps

    def arguments(self, name: str) -> list[Any]:
        self.take()
        arguments: list[Any] = []
        while self.tokens and self.tokens[0] != ("sign", ")"):
            arguments.append(self.expression())
            if self.tokens[:1] == [("sign", ",")]:
                self.take()
        self.take()
        if len(arguments) != _ARGUMENTS[name]:
            raise _wrong(self.text, name)
        if name == "replace" and not all(one[0] == "text" and isinstance(one[1], str) for one in arguments):
            raise _wrong(self.text, name)
        if name == "ofType" and [step[0] for step in arguments[0][1:]] != ["name"]:
            raise _wrong(self.text, name)
        if name == "ofType":
            return [arguments[0][1][1]]
        return [one[1] for one in arguments] if name == "replace" else arguments

    def take(self) -> tuple[str, str]:
        if not self.tokens:
            raise _wrong(self.text, "its end")
        return self.tokens.pop(0)


def _wrong(text: str, token: str) -> ValueError:
    return ValueError(
        f'"{text}" is no path that is understood at {token!r}: there are {", ".join(_ARGUMENTS)}'
    )
