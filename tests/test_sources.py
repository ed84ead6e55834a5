"""The hash of a study changes with whatever code decides what leaves, and with nothing else."""

import collections
import dataclasses
import datetime
import decimal
import importlib
import importlib.util
import logging
import operator
import py_compile
import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import sources
from fedjax_core.describe import code_of, identity
from fedjax_core.sites.site.reviewed import check_code
from fedjax_core.sites.study import Study

STUDY = """
import {helper}
from heart.parts import loss

RATE = 0.5


class Net:
    def __call__(self, x):
        return {helper}.double(x)


def own(x):
    return loss(x) * RATE


def late(x):
    import {helper} as other
    return other.double(x)
"""


@pytest.fixture
def heart(tmp_path, monkeypatch):
    """A package in the folder `heart`, and a module that it uses beside it; writes of them are seen at the
    next `load`."""
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "heart/__init__.py": "", "heart/study.py": STUDY.format(helper="beside"), "heart/parts.py": "def loss(x):\n    return x\n",
        "heart/weights.json": "{}", "beside.py": "def double(x):\n    return 2 * x\n",
    }  # fmt: skip

    def load(**changed):
        for path, text in (
            files | {name.replace("__", "/", 1).replace("_dot_", "."): text for name, text in changed.items()}
        ).items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
        for name in [name for name in sys.modules if sources.root(name) in ("heart", "beside", "beneath")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module("heart.study")

    yield load
    for name in [name for name in sys.modules if sources.root(name) in ("heart", "beside", "beneath")]:
        del sys.modules[name]


CHANGES = {
    "a helper in another file": {"heart__parts_dot_py": "def loss(x):\n    return x + 1\n"},
    "a file that nothing mentions": {"heart__more_dot_py": "import os\n"},
    "data of the package": {"heart__weights_dot_json": "[1]"},
    "a module that it imports": {"beside_dot_py": "def double(x):\n    return x\n"},
    "a method": {
        "heart__study_dot_py": STUDY.format(helper="beside").replace(
            "double(x)\n\n\ndef own", "double(x[::-1])\n\n\ndef own"
        )
    },
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("name", ["own", "Net", "net", "late"])
def test_whatever_code_changed_changes_the_hash(heart, what, name):
    def found(**changed):
        module = heart(**changed)
        return identity({"f": module.Net() if name == "net" else getattr(module, name)})

    before = found()
    assert found() == before
    assert found(**CHANGES[what]) != before


def test_a_module_that_is_only_imported_by_an_imported_one_counts(heart):
    first = {
        "beside_dot_py": "from beneath import double\n",
        "beneath_dot_py": "def double(x):\n    return 2 * x\n",
    }
    before = code_of(heart(**first).own)
    after = code_of(heart(**first | {"beneath_dot_py": "def double(x):\n    return x\n"}).own)
    assert set(before) == {"heart", "beside", "beneath"}
    assert {name for name in before if before[name] != after[name]} == {"beneath"}


def test_a_compiled_module_beside_it_counts(heart, tmp_path):
    text = STUDY.format(helper="beside") + "\n\ndef fast(x):\n    import fast\n    return fast.double(x)\n"
    before = code_of(heart(heart__study_dot_py=text).own)
    (tmp_path / "fast.cpython-311-x86_64-linux-gnu.so").write_bytes(b"one")
    first = code_of(heart(heart__study_dot_py=text).own)
    (tmp_path / "fast.cpython-311-x86_64-linux-gnu.so").write_bytes(b"two")
    assert set(before) == {"heart", "beside"} and set(first) == {*before, "fast"}
    assert code_of(heart(heart__study_dot_py=text).own)["fast"] != first["fast"]


def test_where_a_package_is_installed_what_it_imports_is_the_same(heart, tmp_path, monkeypatch):
    """A library that is one file, as typing_extensions, is trusted beside an installed package, too."""
    import typing_extensions

    installed = Path(typing_extensions.__file__).parent
    monkeypatch.setattr(
        sources,
        "_places",
        lambda name: [installed / f"{name}.py"] if name != "heart" else [installed / "heart"],
    )
    assert sources._imported("typing_extensions", [installed / "heart"]) == []


def test_a_package_is_found_by_its_files_whoever_put_a_module_of_its_name_there(heart, monkeypatch):
    heart()
    before = sources.digests(["heart"])
    heart()
    assert sources.digests(["heart"]) == before
    monkeypatch.setitem(sys.modules, "heart", types.ModuleType("heart"))  # as test runners do
    assert sources.digests(["heart"]) == before and "heart" in before


def test_where_this_process_looks_for_modules_beside_does_not_count(heart, tmp_path, monkeypatch):
    before = code_of(heart(**{"heart__script_dot_py": "import far\n"}).own)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert code_of(heart(**{"heart__script_dot_py": "import far\n"}).own) == before and set(before) == {
        "heart",
        "beside",
    }


def test_settings_of_a_file_count_as_they_are_now(heart, monkeypatch):
    module = heart()
    before = identity(module.own)
    monkeypatch.setattr(module, "RATE", 0.25)
    assert identity(module.own) != before


def test_compiled_and_hidden_files_do_not_count(heart, tmp_path):
    before = identity(heart().own)
    (tmp_path / "heart" / "__pycache__").mkdir(exist_ok=True)
    for name in ("__pycache__/study.cpython-311.pyc", ".study.py.swp", "study.py~"):
        (tmp_path / "heart" / name).write_text("anything")
    assert identity(heart().own) == before


def test_a_module_beside_it_that_bears_the_name_of_a_library_counts(heart, tmp_path, monkeypatch):
    """Python takes it for the library, also where another library imports that: here for `secrets`, as in
    hmac, and for `yaml`."""
    (tmp_path / "fedjax_core").mkdir()
    (tmp_path / "fedjax_core" / "__init__.py").write_text("")
    (tmp_path / "test").mkdir()  # without __init__.py nobody takes it for a module
    before = code_of(heart().own)
    assert set(before) == {"heart", "beside"}
    names = {"secrets": "secrets.py", "yaml": "yaml/__init__.py", "jax": "jax/__init__.py"}
    names |= {"sitecustomize": "sitecustomize.py", "jax_plugins": "jax_plugins/more.py"}  # which run unasked
    for path in names.values():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("x = 1\n")
    with monkeypatch.context() as patch:  # as another process may have it, which looks elsewhere first
        patch.setattr(sys, "path", [*sys.path[1:], sys.path[0]])
        assert set(code_of(heart().own)) == {"heart", "beside", *names}
    first = code_of(heart().own)
    (tmp_path / "secrets.py").write_text("x = 2\n")
    assert {name for name, digest in code_of(heart().own).items() if first[name] != digest} == {"secrets"}


def test_code_of_a_module_that_bears_the_name_of_one_of_pythons_own_is_not_pythons(tmp_path, monkeypatch):
    def found(text):
        (tmp_path / "this.py").write_text(text)
        sys.modules.pop("this", None)
        importlib.invalidate_caches()
        return identity(importlib.import_module("this").own)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "this", raising=False)
    assert found("def own(x):\n    return x\n") != found("def own(x):\n    return x + 1\n")
    sys.modules.pop("this", None)


def test_what_was_compiled_beforehand_counts_where_python_runs_it_and_it_is_other_code(heart, tmp_path):
    """A compiled file is run in the place of its source where it says that it is of that; one alone is a
    module."""
    module = heart()
    parts, other = tmp_path / "heart" / "parts.py", tmp_path / "other.py"
    other.write_text("def loss(x):\n    return 9 * x\n")
    compiled = Path(importlib.util.cache_from_source(str(parts)))
    compiled.unlink(missing_ok=True)
    before = identity(module.own)
    py_compile.compile(str(parts))
    assert identity(module.own) == before  # what Python itself makes
    py_compile.compile(str(other), cfile=str(compiled))
    assert identity(module.own) == before  # of another source: Python does not run it
    about, raw = parts.stat(), compiled.read_bytes()
    compiled.write_bytes(
        raw[:8] + b"".join(x.to_bytes(4, "little") for x in (int(about.st_mtime), about.st_size)) + raw[16:]
    )
    assert identity(module.own) != before
    py_compile.compile(
        str(other), cfile=str(compiled), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    assert identity(module.own) != before
    compiled.unlink()
    assert identity(module.own) == before
    py_compile.compile(str(other), cfile=str(tmp_path / "heart" / "more.pyc"))
    assert identity(module.own) != before


def test_files_behind_links_count_and_links_in_a_circle_end(heart, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "one.py").write_text("x = 1\n")
    heart()
    (tmp_path / "heart" / "inner").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "heart" / "circle").symlink_to(tmp_path / "heart")
    before = identity(heart().own)
    (tmp_path / "elsewhere" / "one.py").write_text("x = 2\n")
    assert identity(heart().own) != before


def test_code_that_lies_in_no_file_counts_by_its_methods_and_what_it_mentions(heart):
    def cell(body):
        scope = {"__name__": "__main__", "heart_study": module}
        exec(f"class Net:\n    def __call__(self, x):\n        return {body}\n", scope)
        return scope["Net"]

    module = heart()
    for made in (lambda kind: kind, lambda kind: kind()):
        assert identity(made(cell("x"))) == identity(made(cell("x"))) != identity(made(cell("-x")))
    assert set(code_of(cell("heart_study.own(x)")())) == {"heart", "beside"}


class Hidden:
    """An object of which a setting is not in a public attribute."""

    def __init__(self, x):
        self._x = x


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


@dataclasses.dataclass
class Unprinted:
    x: float = dataclasses.field(repr=False)


SETTINGS = [
    Hidden, Slotted, Unprinted, datetime.timedelta, Path, re.compile, decimal.Decimal, np.random.default_rng, operator.itemgetter,
    lambda x: collections.deque([x]), lambda x: {1: x}.get, lambda x: x.__add__, lambda x: np.polynomial.Polynomial([x, 1]),
    lambda x: jax.tree_util.Partial(jax.numpy.add, x), lambda x: Hidden(Slotted(x)).__init__,
]  # fmt: skip


@pytest.mark.parametrize(
    "of", SETTINGS, ids=[f"{i} {getattr(of, '__name__', of)}" for i, of in enumerate(SETTINGS)]
)
def test_whatever_object_holds_a_setting_it_is_in_the_hash(of):
    one, two = ("a", "b") if of in (Path, re.compile) else (1, 2)
    assert identity({"f": of(one)}) == identity({"f": of(one)}) != identity({"f": of(two)})


def test_where_a_process_writes_its_log_is_no_setting():
    held = Hidden(logging.getLogger("heart"))
    before = identity({"f": held})
    handler = logging.NullHandler()
    logging.getLogger("heart").addHandler(handler)
    assert identity({"f": held}) == before
    logging.getLogger("heart").removeHandler(handler)


WITHIN = """
def closed(x):
    class Loss:
        def __call__(self, y):
            return x * y
    return Loss()


def default(x):
    class Loss:
        def __call__(self, y, x=x):
            return x * y
    return Loss()


def beside(x):
    class Loss:
        scale = x
    return Loss() if x else Loss


def line(x):
    return (lambda y: y) if x == 1 else (lambda y: -y)


def lines(x):
    if x == 1:
        def loss(y):
            return y
    else:
        def loss(y):
            return -y
    return loss


def classes(x):
    if x == 1:
        class Loss:
            def __call__(self, y):
                return y
    else:
        class Loss:
            def __call__(self, y):
                return -y
    return Loss
"""


@pytest.mark.parametrize("how", ["closed", "default", "beside", "line", "lines", "classes"])
def test_which_of_the_functions_of_a_file_it_is_and_what_was_set_in_it_is_in_the_hash(heart, how):
    make = getattr(heart(heart__study_dot_py=WITHIN), how)
    assert identity({"f": make(1)}) == identity({"f": make(1)}) != identity({"f": make(2)})


def test_libraries_are_trusted_by_their_version():
    study = Study(
        fc.compose(fc.algorithms.fedavg(fc.models.linear(2), local=optax.adam(0.1))), batch_size=2, epochs=1
    )
    assert study.code == {}
    assert sources.digests(["jax", "scipy", "json", "msgspec"]) == {}
    assert sources.digest("fedjax_core") != sources.ABSENT == sources.digest("no_such_package_as_this")


def test_another_version_of_fedjax_core_or_another_width_of_numbers_is_another_study(monkeypatch):
    from fedjax_core.sites import study as module

    def made():
        return Study(
            fc.compose(fc.algorithms.fedavg(fc.models.linear(2), local=optax.sgd(0.1))),
            batch_size=2,
            epochs=1,
        ).hash

    before = made()
    with monkeypatch.context() as patch:
        patch.setattr(module, "version", lambda: "99.0")
        assert made() != before
    monkeypatch.setattr(module, "bits", lambda: 64)
    assert made() != before


def test_a_site_starts_only_while_its_study_is_the_code_that_it_reviewed(heart, tmp_path):
    heart()
    check_code(tmp_path / "state", "heart.study:own", "3f9a")
    check_code(tmp_path / "state", "heart.study:own", "3f9a")
    heart(**{"heart____init___dot_py": "import jax\n"})
    with pytest.raises(
        ValueError,
        match=r"files of heart, .* changed under the same hash 3f9a: review them, and remove .*code\.json",
    ):
        check_code(tmp_path / "state", "heart.study:own", "3f9a")
    # another hash was allowed by the policy after a review of its own
    check_code(tmp_path / "state", "heart.study:own", "91d2")


RENAMED = {
    "a closure of an algorithm": (
        "fedjax_core.algorithms.scaffold",
        {"share": "a_part", "begin": "the_first", "finish": "at_last"},
    ),
    "a closure of a stage": ("fedjax_core.uplink.quantize", {"most": "a_largest", "small": "of_bits"}),
    "an aggregator's": ("fedjax_core.aggregators.mean", {"value": "divided", "add": "met"}),
    "a model's": ("fedjax_core.models.mlp", {"logits": "a_score", "init": "beginnings"}),
    "a server rule's": ("fedjax_core.algorithms.fedopt", {"second": "a_square_of", "change": "moved"}),
}


def study_of_everything(lr=0.1):

    here = {
        name: sys.modules[f"fedjax_core.{name}"]
        for name in ("algorithms.scaffold", "algorithms.fedopt", "aggregators.mean")
    }
    task = sys.modules["fedjax_core.models.mlp"].mlp(features=2, hidden=(3,), classes=2)
    algorithm = here["algorithms.scaffold"].scaffold(task, lr, 3)
    adaptive = fc.algorithms.fedavg(task, optax.sgd(0.1), here["algorithms.fedopt"].adam(0.1, b1=0.8))
    stage, aggregator = (
        sys.modules["fedjax_core.uplink.quantize"].quantize(bits=4),
        here["aggregators.mean"].mean(),
    )
    hashes = [
        Study(fc.compose(one, stage, aggregator), batch_size=2, epochs=1).hash
        for one in (algorithm, adaptive)
    ]
    return tuple(hashes)


@pytest.mark.parametrize("what", RENAMED)
def test_another_name_for_a_variable_within_fedjax_core_is_no_other_study(what, monkeypatch):
    before, (module, names) = study_of_everything(), RENAMED[what]
    source = Path(sys.modules[module].__file__).read_text()
    for old, new in names.items():
        assert len(re.findall(rf"\b{old}\b", source)) > 1
        source = re.sub(rf"(?<![\w.\"]){old}\b(?!\s*=[^=\s])", new, source)
    renamed = types.ModuleType(module)
    monkeypatch.setitem(sys.modules, module, renamed)
    exec(compile(source, sys.modules[module].__name__, "exec"), renamed.__dict__)
    assert study_of_everything() == before
    assert study_of_everything(lr=0.2)[0] != before[0]


def test_what_two_settings_of_one_function_are_called_does_not_mix_them_up():
    adam = fc.algorithms.fedopt.adam
    assert (
        identity(adam(0.1, b1=0.9, b2=0.8))
        != identity(adam(0.1, b1=0.8, b2=0.9))
        != identity(adam(0.9, b1=0.1, b2=0.8))
    )
    begin = fc.algorithms.fedavg(fc.models.linear(2), optax.sgd(0.1)).exchanges[0].client
    assert identity(begin) != identity(begin._replace(begin=begin.finish, finish=begin.begin))


def test_an_algorithm_that_says_other_settings_than_it_has_is_another_study():
    linear = fc.models.linear(2)
    one, two = (fc.algorithms.fedavg(linear, optax.sgd(lr)) for lr in (0.1, 0.2))
    hidden = two._replace(settings=one.settings)
    assert len({Study(fc.compose(algorithm), batch_size=2).hash for algorithm in (one, two, hidden)}) == 3


@pytest.mark.parametrize("where", ["objective", "weighting"])
def test_a_users_own_helper_that_changed_is_another_study(heart, where):
    def found(**changed):
        own = heart(**changed).own
        if where == "weighting":
            algorithm = fc.algorithms.fedavg(
                fc.models.linear(2), optax.sgd(0.1), weighting=lambda seen: own(seen.examples)
            )
        else:
            linear = fc.models.linear(2)
            algorithm = fc.algorithms.fedavg(
                linear._replace(loss=lambda *of: own(linear.loss(*of))), optax.sgd(0.1)
            )
        return Study(fc.compose(algorithm), batch_size=2).hash

    before = found()
    assert found() == before != found(heart__parts_dot_py="def loss(x):\n    return x + 1\n")


def test_a_study_that_travels_by_a_pickle_keeps_its_hash():
    """A worker of Ray gets copies of all functions that are written within others, and finds their places by
    equal code."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")

    def made(lr=0.1):
        algorithm = fc.algorithms.scaffold(fc.models.linear(2), lr, 3)
        uplink = fc.uplink.chain(fc.uplink.clip(1.0), fc.uplink.quantize(bits=4))
        return Study(fc.compose(algorithm, uplink), batch_size=2, epochs=1)

    dumped = cloudpickle.dumps(made())  # before anybody asks for its hash, which a study remembers
    travelled = cloudpickle.loads(dumped)
    assert travelled.round.algorithm.init is not made().round.algorithm.init
    assert travelled.hash == made().hash != made(lr=0.2).hash
