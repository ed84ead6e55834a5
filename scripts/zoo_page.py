"""Writes docs/zoo.md, the table of all methods and of what proves each: `python -m scripts.zoo_page`.

A row's file says the paper, by the docstring, and the lines; tests say what they prove by
`@pytest.mark.proves("feddyn", by="...")`."""

import ast
import inspect
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import fedjax_core as fc

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "zoo.md"
# What is an argument of another: (its file, the paper where that is not the file's).
VARIANTS = {
    "fedavgm": ("fedavg", "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019"),
    "fedpd": ("fedadmm", "FedPD: A Federated Learning Framework with Adaptivity to Non-IID Data, 2021"),
    "mimelite": ("mime", ""),
    "fedadam, fedyogi, fedadagrad": ("fedopt", "Adaptive Federated Optimization, ICLR 2021"),
    "knn-per": ("../knn_per", ""),
    "finetune": ("../personalise", "Salvaging Federated Learning by Local Adaptation, 2020"),
    "silobn": ("fedper", "Siloed Federated Learning for Multi-centric Histopathology Datasets, DCL 2020"),
    "fedit": ("../lora", "Towards Building the Federated GPT: Federated Instruction Tuning, ICASSP 2024"),
    "ffa-lora": ("../lora", "Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024"),
    "fedbn": ("fedper", "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021"),
}  # fmt: skip
_CITED = re.compile(r'"([^"]{12,}),?"(?:, ([^,.;"]*?\d{4})| \(([^)]*\d{4})\))')
HEAD = """# Methods, and what proves each

`python -m scripts.zoo_page` writes this page from the docstrings and from the tests, and a test fails where it is out of date. A method
without a proof has no row. "Lines" are those of its file without docstrings, comments and blank lines. All of them also pass the contracts
of [test_contracts.py](../tests/test_contracts.py), where lanes, plain loops and order are compared. What `scripts/test.sh --long` runs is
proved before anything lands.

| method | paper | lines | what proves it | status |
|---|---|---|---|---|
"""


def methods() -> dict[str, tuple[Path, str]]:
    """{method: (its file, its paper)} of what gives an algorithm, of stages and aggregators with a paper, and
    of the variants."""
    found = {}
    for part, kinds in (
        (fc.aggregators, (fc.aggregators.Aggregator,)),
        (fc.uplink, (fc.uplink.Stage, fc.uplink.Delta)),
    ):
        for name in part.__all__:
            function = getattr(part, name)
            if inspect.isfunction(function) and function.__annotations__.get("return") in kinds:
                file = Path(inspect.getfile(inspect.unwrap(function)))
                if _CITED.search(" ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split())):
                    found[name] = file, paper(file, name)
    for name in fc.algorithms.__all__:
        function = getattr(fc.algorithms, name)
        if (
            inspect.isfunction(function)
            and function.__annotations__.get("return") is fc.algorithms.Algorithm
            and name not in ("by_round", "unweighted")
        ):
            file = Path(inspect.getfile(inspect.unwrap(function)))
            found[name] = file, paper(file)
    for name, (file_name, of) in VARIANTS.items():
        file = (REPOSITORY / "fedjax_core" / "algorithms" / f"{file_name}.py").resolve()
        found[name] = file, of or paper(file)
    return dict(sorted(found.items()))


def paper(file: Path, name: str = "") -> str:
    """The title in quotes in a module's docstring, with where and when it appeared: of several the one that is
    followed by the method's `name` in brackets, else the first."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split())
    cited = list(_CITED.finditer(text))
    if not cited:
        raise ValueError(
            f'{file.name} cites no paper in its docstring: write authors, "title", where and when'
        )
    own = [one for one in cited if name and text[one.end() :].lower().startswith(f" ({name})")]
    chosen = (own or cited)[0]
    return f"{chosen[1]}, {chosen[2] or chosen[3]}"


def own_lines(file: Path) -> int:
    """Lines of a file without docstrings, comments and blank ones."""
    tree = ast.parse(file.read_text())
    docs = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docs |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(file.read_text().splitlines(), start=1)
    return sum(
        1
        for number, line in lines
        if line.strip() and not line.strip().startswith("#") and number not in docs
    )


def proofs() -> dict[str, list[tuple[str, str, bool]]]:
    """{method: [(what proves it, the test, whether it is slow)]}, by the marks of tests."""
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for file in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        for test, marks in _marked(file):
            slow = any(ast.unparse(mark) == "pytest.mark.slow" for mark in marks)
            for mark in marks:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.proves":
                    (by,) = [ast.literal_eval(word.value) for word in mark.keywords if word.arg == "by"]
                    for method in map(ast.literal_eval, mark.args):
                        found.setdefault(method, []).append(
                            (by, f"{file.relative_to(REPOSITORY)}::{test}", slow)
                        )
    return found


def _marked(file: Path) -> Iterator[tuple[str, list[ast.expr]]]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            yield node.name, node.decorator_list


def page() -> str:
    """The page as it should be; raises where a method has no proof, or a proof is of no method."""
    rows, proved = methods(), proofs()
    if without := sorted(set(rows) - set(proved)):
        raise ValueError(
            f"no test proves {', '.join(without)}: mark one by @pytest.mark.proves(name, by=...)"
        )
    if unknown := sorted(set(proved) - set(rows)):
        raise ValueError(f"tests prove {', '.join(unknown)}, of which there is no such method")
    written = []
    for name, (file, of) in rows.items():
        shown = "; ".join(
            dict.fromkeys(f"[{by}](../{test.partition('::')[0]})" for by, test, _ in proved[name])
        )
        status = (
            "proved before anything lands"
            if not all(slow for _, _, slow in proved[name])
            else "proved with --slow"
        )
        code = name if name in VARIANTS else f"`{name}`"
        written.append(
            f"| [{code}](../{file.relative_to(REPOSITORY)}) | {of} | {own_lines(file)} | {shown} | {status} |"
        )
    lines = statistics.median(own_lines(file) for file in {file for file, _ in rows.values()})
    return HEAD + "\n".join(written) + f"\n\n{len(rows)} methods; the median file has {lines:g} lines.\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(REPOSITORY)}")
