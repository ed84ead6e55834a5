"""Writes docs/compliance.md, from each safeguard of 45 CFR 164 to what meets it and what shows it: `python -m
scripts.compliance_page`.

Tests say what they show by `@pytest.mark.meets("164.312(b)", by="...")`. A safeguard that no test meets has
to say here why."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "compliance.md"


@dataclass(frozen=True)
class Safeguard:
    """One standard or specification: what it asks for, and what of it no software can give."""

    name: str
    asks: str
    yours: str
    """What is left to the organisation."""
    lacks: str = ""
    """Why nothing here meets it; empty where tests do."""


SAFEGUARDS = {
    "164.312(a)(1)": Safeguard(
        "access control", "only persons and programs that were granted access have it",
        "Who may sign in to the machines, and who may change a site's policy.",
    ),
    "164.312(a)(2)(i)": Safeguard(
        "unique user identification (required)", "each actor has a name of its own, by which it is tracked",
        "A key is of a site, not of a person: which person gave a command is known to the machine's own accounts.",
    ),
    "164.312(a)(2)(ii)": Safeguard(
        "emergency access (required)", "records can be had in an emergency",
        "The hospital's own systems hold the records, and a site here reads them and is not the way to them.",
        lacks="no records are kept here, only models and logs; there is no break-glass command",
    ),
    "164.312(a)(2)(iii)": Safeguard(
        "automatic logoff (addressable)", "a session that nobody uses ends",
        "Locking screens and ending shells is the operating system's.",
        lacks="there is no session of a person: a command runs and ends, and a site answers signed requests alone",
    ),
    "164.312(a)(2)(iv)": Safeguard(
        "encryption at rest (addressable)", "what is stored cannot be read by who takes the disk",
        "A site's data, its logs and what it keeps between rounds are plain files of its owner: encrypt their disks, and keep the keys.",
    ),
    "164.312(b)": Safeguard(
        "audit controls (required)", "what happened is recorded, and the record can be examined",
        "Somebody has to read it, and to keep the exported heads elsewhere.",
    ),
    "164.312(c)(1)": Safeguard(
        "integrity (required)", "data are not changed or destroyed improperly",
        "Backups of the data, and whether they were right in the first place.",
    ),
    "164.312(d)": Safeguard(
        "person or entity authentication (required)", "who asks is who it claims to be",
        "Proving persons, also by a second factor, is for the way to the machine. Keys are exchanged by another way than the network.",
    ),
    "164.312(e)(1)": Safeguard(
        "transmission security (required)", "what is sent is neither read nor changed on its way",
        "Firewalls, and who may run code in the Ray cluster: it is one domain of trust (docs/sites-privacy.md).",
    ),
    "164.308(a)(1)(ii)(D)": Safeguard(
        "review of activity (required)", "logs and reports are reviewed regularly",
        "The review itself.",
    ),
    "164.308(a)(7)": Safeguard(
        "contingency plan (required)", "work goes on after an emergency, from what was saved",
        "A plan, copies in another place, and a drill with a date.",
    ),
    "164.316(b)(2)(i)": Safeguard(
        "retention of documents (required)", "documents are kept for six years",
        "The six years: archives have to be kept where they are not lost.",
    ),
    "164.502(b)": Safeguard(
        "minimum necessary (required)", "no more is used or told than the purpose needs",
        "Which purpose that is. A policy's numbers are for the hospital to choose, and the defaults allow next to nothing.",
    ),
    "164.514(a)": Safeguard(
        "de-identification (where it is claimed)", "health information identifies nobody",
        "A model or a statistic may still tell of a person: treat them as protected, unless an expert or a proven epsilon says otherwise.",
        lacks="identifiers are to be taken out of a study's data before a site reads them; nothing here makes records anonymous",
    ),
}  # fmt: skip

HEAD = """# Safeguards of 45 CFR 164, and what shows each

`python -m scripts.compliance_page` writes this page from the marks of tests, and a test fails where it is out of date. It is for whoever
has to say to an auditor which control is met by what. The words of the rule are shortened here; the rule is what counts.

**No software is "HIPAA compliant".** The rule binds organisations: it asks for risk analyses, agreements, training, people who review and
sign. Nor does a table of tests show that an installation is set up as the tests are: `fedjax-core doctor` examines one. What is told below
holds of this version, on the machines on which the tests ran.

A model, an update and a statistic are made of health information and can tell of a person. They are protected like it, unless somebody who
may say so says that they are not.

| safeguard | asks for | met by | shown by | left to you |
|---|---|---|---|---|
"""
FOOT = """
## What no software can promise

- That the right people have the keys, and that a key was not copied.
- That a colleague who may see the data does not carry them away.
- That a study's question needs the columns that its policy lets leave.
- That a model tells nothing of anybody, without noise that was accounted for; `docs/privacy.md` says what an epsilon is and is not.
- That nothing is missed by tests: they show what was thought of.
- That next year's rule asks for the same: the one proposed in January 2025 (90 FR 898) would require nearly all that is "addressable".
"""


def shown() -> dict[str, list[tuple[str, str]]]:
    """{safeguard: [(what meets it, the test)]}, by the marks of tests."""
    found: dict[str, list[tuple[str, str]]] = {}
    for file in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        text = file.read_text()
        if "mark.meets" not in text:
            continue
        for test, mark in _marked(ast.parse(text)):
            (by,) = [ast.literal_eval(word.value) for word in mark.keywords if word.arg == "by"]
            for clause in map(ast.literal_eval, mark.args):
                found.setdefault(clause, []).append((by, f"{file.relative_to(REPOSITORY)}::{test}"))
    return found


def _marked(module: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.meets":
                    yield node.name, mark


def page() -> str:
    """The page as it should be; raises where a safeguard has neither a test nor a reason, or a test names one
    that is none."""
    tests = shown()
    if unknown := sorted(set(tests) - set(SAFEGUARDS)):
        raise ValueError(
            f"tests meet {', '.join(unknown)}, of which there is no such safeguard in scripts/compliance_page.py"
        )
    if without := sorted(name for name, one in SAFEGUARDS.items() if bool(one.lacks) == (name in tests)):
        raise ValueError(f"{', '.join(without)}: either tests meet it, or it says why none does, not both")
    rows = []
    for clause, one in SAFEGUARDS.items():
        met = tests.get(clause, [])
        by = "; ".join(dict.fromkeys(by for by, _ in met)) or f"**not met here**: {one.lacks}"
        named = ", ".join(dict.fromkeys(f"`{test}`" for _, test in met)) or "-"
        rows.append(f"| {clause} {one.name} | {one.asks} | {by} | {named} | {one.yours} |")
    count = sum(not one.lacks for one in SAFEGUARDS.values())
    return (
        HEAD
        + "\n".join(rows)
        + f"\n\n{count} of {len(SAFEGUARDS)} safeguards are met by something that a test shows.\n"
        + FOOT
    )


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(REPOSITORY)}")
