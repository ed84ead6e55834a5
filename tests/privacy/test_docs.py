"""docs/privacy.md runs as it is printed, and has the table of what `compose` says. `python -m
tests.privacy.test_docs` writes that."""

import re
from functools import partial

import pytest

import fedjax_core as fc
from tests.conftest import REPOSITORY
from tests.zoo import AGGREGATORS, PRIVATE, SGD, STAGES, ZOO, N, fedavg, task

PAGE = REPOSITORY / "docs" / "privacy.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->"
LEVEL = fc.privacy.client_level(population=N, cohort=4, rounds=5, clip=1.0, noise=1.0, delta=1e-3)
LOCAL = fc.privacy.local(clip=1.0, noise=1.0, rounds=5, delta=1e-3, open_counts=True)
HIDDEN = fc.uplink.chain(fc.uplink.clip(1.0), fc.uplink.secure(bound=1.0))
LINEAR = {  # stages that secure aggregation lets stand before it, and their like that it does not
    "randk, shared": lambda: fc.uplink.randk(0.3, shared=True),
    "randk": lambda: fc.uplink.randk(0.3),
    "count sketch": lambda: fc.uplink.count_sketch(3, 10),
    "rotation": lambda: fc.uplink.rotated(fc.uplink.chain()),
    "rotation, k-level": lambda: fc.uplink.rotated(fc.uplink.k_level(2)),
    "distributed noise": lambda: fc.privacy.skellam(1.0, 1.0, 2.0**-8, 31, 100.0),
}
SHOWN = "docs/privacy.md"


def short(error):
    """What is wrong, without where in a chain, as far as the first comma."""
    return re.sub(r"^in chain\((?:[^()]|\([^()]*\))*\), ", "", str(error)).partition(", ")[0]


def said(*pieces, **more):
    """Whether these compose, and why not, as far as the first comma."""
    try:
        fc.compose(*pieces, **more)
    except (ValueError, TypeError) as error:
        return f"no: {short(error)}"
    return "yes"


def algorithms(names=None):
    """{name: one algorithm of that name} of the zoo; of those of these names, the ones whose entries begin
    with it."""
    found = {}
    for name, entry in ZOO.items():
        if name not in PRIVATE and (names is None or name.partition(",")[0] in names):
            algorithm = entry.of(N).algorithm
            found.setdefault(algorithm.name, algorithm)
    return found


def rows(names=None):
    """(kind, name, under client_level, under local, under secure aggregation) of all pieces."""
    total = fc.aggregators.total()
    for name, algorithm in sorted(algorithms(names).items()):
        if names is None or name in names:
            under = (
                said(algorithm, LEVEL.uplink, LEVEL.aggregator),
                said(algorithm, LOCAL.uplink),
                said(algorithm, HIDDEN, total),
            )
            yield "algorithm", name, *under
    plain = fc.algorithms.unweighted(fedavg().algorithm)  # as some of the rules ask for
    for name, make in AGGREGATORS.items():
        if names is None or name in names:
            under = [said(plain, uplink, make()) for uplink in (LEVEL.uplink, LOCAL.uplink, HIDDEN)]
            yield "aggregator", name, *under
    for name, make in {**STAGES, **LINEAR}.items():
        if names is None or name in names:
            after = [lambda own=own, make=make: fc.uplink.chain(own.uplink, make()) for own in (LEVEL, LOCAL)]
            hidden = chained(
                fc.algorithms.fedavg(task(), SGD, weighting=fc.algorithms.uniform),
                partial(before, make),
                total,
            )
            yield (
                "stage",
                name,
                chained(plain, after[0], LEVEL.aggregator),
                chained(plain, after[1], None),
                hidden,
            )


def before(make):
    """The stage before the masks."""
    return fc.uplink.chain(fc.uplink.clip(1.0), make(), fc.uplink.secure(bound=128.0))


def chained(algorithm, build, aggregator):
    try:
        return said(algorithm, build(), aggregator)
    except (ValueError, TypeError) as error:
        return f"no: {short(error)}"


def table(names=None):
    head = "| piece | name | under `client_level` | under `local`, with counts said openly | under secure aggregation |\n"
    head += "|---|---|---|---|---|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows(names))


def printed():
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def test_the_examples_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, SHOWN, "exec"), {})
        lines = capsys.readouterr().out.splitlines()
        wanted = re.findall(r"# (.*)$", example, re.MULTILINE)
        assert lines[: len(wanted)] == wanted


FEW = (
    "fedavg",
    "scaffold",
    "mime",
    "fednova",
    "mean",
    "total",
    "median",
    "clip",
    "quantize",
    "ef21",
    "randk",
    "randk, shared",
)


def test_the_table_is_what_compose_says_of_a_few():
    lines = table(FEW).splitlines()
    assert len(lines) == 2 + len(FEW) and set(lines) <= set(printed().splitlines())


@pytest.mark.slow
def test_the_table_is_what_compose_says_of_all():
    assert printed() == table()


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text.partition(BEGIN)[0] + BEGIN + table() + END + text.partition(END)[2])
