"""Sites whose columns or features differ, be it in their order alone, do not train together; by names they
are put in one order."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.audit import show
from fedjax_core.sites.coordinator.units import far
from fedjax_core.sites.doctor.examination import Settings, examine
from fedjax_core.sites.doctor.expected import Expected
from fedjax_core.sites.federation import Federation
from fedjax_core.sites.protocol.schema import as_fields, columns, difference, items_of
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study

NAMES = ("age", "weight", "sex")


@pytest.fixture(scope="module")
def composed():
    return fc.compose(fc.algorithms.fedavg(fc.models.logistic(3, 2), optax.sgd(0.1)))


def data(seed, order=(0, 1, 2), **rest):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(8, 3)).astype(np.float32), rng.integers(0, 2, 8).astype(np.int32)
    return fc.Clients.from_list(
        [{"x": x[:, list(order)], "y": y}], features={"x": [NAMES[i] for i in order]}, **rest
    )


def sites(*each):
    return [
        SiteFile(name=name, data=one) for name, one in zip(("charite", "mayo", "oslo"), each, strict=False)
    ]


def run(composed, *each, **rest):
    with Federation(composed, sites(*each), batch_size=4, epochs=1, transport="in-process", **rest) as fed:
        return fed.run(fed.init(jax.random.key(0)), list(range(len(each))))[0].params


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (
            data(1, (0, 2, 1)),
            "charite has 'x: weight' where mayo has 'x: sex': the same features in another order",
        ),
        (
            data(1).arranged({"x": NAMES}).with_columns({**data(1).columns, "z": np.ones(8)}),
            "mayo has 'z: float64[]', which charite has not",
        ),
        (fc.Clients.from_list([data(1)[0]]), "charite names the features of 'x' and mayo does not"),
        (
            fc.Clients.from_list([{"x": np.ones((8, 3)), "y": np.zeros(8, np.int32)}], features={"x": NAMES}),
            "charite has 'x: float32[3]' where mayo has 'x: float64[3]'",
        ),
    ],
)
def test_the_first_difference_is_named_with_both_sites(composed, other, what):
    with pytest.raises(ValueError, match="all sites need the same columns in the same order") as caught:
        run(composed, data(0), other)
    assert what in str(caught.value)


def test_sites_are_put_in_the_studys_order_by_their_names(composed):
    expected = run(composed, data(0), data(1))
    apart = {name: data(1).columns["x"][:, i] for i, name in reversed(list(enumerate(NAMES)))} | {
        "y": data(1).columns["y"]
    }
    for other in (data(1, (2, 0, 1)), fc.Clients.from_list([apart])):
        found = run(composed, data(0), other, features={"x": NAMES})
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    plain, named = Study(composed, 4, 1), Study(composed, 4, 1, features={"x": NAMES})
    assert plain.hash != named.hash != Study(composed, 4, 1, features={"x": NAMES[::-1]}).hash
    with pytest.raises(ValueError, match=r"column 'x' has no feature 'height'"):
        run(composed, data(0), data(1), features={"x": ("age", "weight", "height")})


def test_the_order_of_a_dictionary_is_nothing(composed):
    one = data(1)[0]
    found = run(composed, {"y": one["y"], "x": one["x"]}, {"x": one["x"], "y": one["y"]})
    alike = run(composed, {"x": one["x"], "y": one["y"]}, {"x": one["x"], "y": one["y"]})
    jax.tree.map(np.testing.assert_array_equal, found, alike)


def test_thousands_of_names_fit_a_message_and_the_rest_is_told_by_the_digest():
    names = [f"gene {i} of {'x' * 20}" for i in range(20_000)]
    here, there = (
        as_fields(items_of({"x": "float32[20000]"}, {"x": of}))
        for of in (names, [*names[:-2], names[-1], names[-2]])
    )
    assert len(here) <= 40 and sum(len(str(line)) for line in here.values()) < 50_000
    assert difference("charite", here, "mayo", here) is None
    assert "beyond the first" in difference("charite", here, "mayo", there)
    early = as_fields(items_of({"x": "float32[20000]"}, {"x": [names[1], names[0], *names[2:]]}))
    assert difference("charite", here, "mayo", early).startswith("charite has 'x: gene 0 of")
    for broken in (
        {"schema": "1"},
        {"schema": "1", "columns": "{}"},
        {"schema": "1", "columns": "[[]]"},
        {"schema": "1", "columns": 3},
    ):
        assert (
            difference("charite", here, "mayo", broken)
            == "charite and mayo have other columns, shapes or dtypes"
        )


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        (
            {"x": "float32[2]"},
            {"age": "int32[]", "x": "float32[2]"},
            "mayo has 'age: int32[]', which charite has not",
        ),
        (
            {"age": "int32[]", "x": "float32[2]"},
            {"x": "float32[2]"},
            "charite has 'age: int32[]', which mayo has not",
        ),
        (
            {"x": "float32[2]", "y": "int64[]"},
            {"x": "float32[2]", "y": "float64[]"},
            "charite has 'y: int64[]' where mayo has 'y: float64[]'",
        ),
    ],
)
def test_a_column_more_is_no_difference_of_its_neighbours(here, there, said):
    assert difference("charite", fields(here), "mayo", fields(there)) == said


def fields(columns):
    return as_fields(items_of(columns, {}))


def test_another_unit_at_one_site_is_named_before_the_first_round(composed, caplog, tmp_path):
    def site(seed, times):
        clients = data(seed)
        x = clients.columns["x"] * [10, 10, 1] + [60, 80, 0]
        return clients.with_columns({"x": (x * [1, times, 1]).astype(np.float32), "y": clients.columns["y"]})

    steps = [fc.preprocess.Standardise("x")]
    run(composed, site(0, 1), site(1, 1), site(2, 1), prepare=steps)
    assert "another unit" not in caplog.text
    # grams for kilograms
    run(composed, site(0, 1), site(1, 1), site(2, 1000), prepare=steps, folder=tmp_path)
    said = [r.getMessage() for r in caplog.records if "another unit" in r.getMessage()]
    assert said == [
        "oslo has a mean of 'weight' in 'x' far from that of the other sites: is it in another unit, or another column?"
    ]
    (entry,) = [entry for entry in show(tmp_path / "audit") if entry.what == "far apart"]
    assert entry.about["reason"] == said[0]


@pytest.mark.parametrize(
    ("own", "others", "apart"),
    [
        ((98.6, 1.0), (37.0, 0.6), True),  # Fahrenheit, Celsius
        ((1.0, 0.3), (88.0, 26.0), True),  # creatinine in mg/dl, micromol/l
        ((20.0, 5.0), (72.0, 15.0), False),  # the weight of children
        ((0.1, 0.3), (0.6, 0.5), False),  # shares of a rare and a common thing
        ((3.0, 0.0), (3.0, 0.0), False),
    ],
)
def test_hospitals_differ_by_less_than_units_do(own, others, apart):
    said = [
        {"count": np.array(50), "mean": np.array(m), "m2": np.array(50 * s**2)}
        for m, s in (own, others, others)
    ]
    found = far([fc.preprocess.Standardise("x")], ["charite", "mayo", "oslo"], [[one] for one in said], {})
    assert [sentence.split()[0] for sentence in found] == (["charite"] if apart else [])


@pytest.mark.parametrize(
    ("own", "others", "apart"),
    [
        (["female", "male"], ["f", "m"], True),
        (["m", "male"], ["f", "m"], False),
        ([1, 2], [0, 3], True),
        ([], ["f", "m"], False),  # of which a site has too few to tell
    ],
)
def test_categories_that_no_other_site_has_are_named(own, others, apart):
    step = fc.preprocess.OrdinalEncode("sex", minimum=1)
    said = [[step.sums(np.array(one or np.zeros(0, "U1")), 0)] for one in (own, others, others)]
    found = far([step], ["charite", "mayo", "oslo"], said, {})
    assert (
        found
        == [
            "charite has no category of 'sex' in common with the other sites: does it spell or number them otherwise, "
            "or is it another column?"
        ]
        * apart
    )


def test_the_doctor_compares_features_with_those_of_the_study(composed, tmp_path):
    clients = data(0)
    expected = Expected.here(Study(composed, 4, 1), columns(clients), clients.features)
    expected.write(tmp_path / "expected.toml")
    assert Expected.read(tmp_path / "expected.toml").features == {"x": list(NAMES)}
    for order, fine in (((0, 1, 2), True), ((1, 0, 2), False)):
        data(0, order).save(tmp_path / f"data{order[0]}")
        path = tmp_path / f"site{order[0]}.toml"
        path.write_text(f'name = "charite"\ndata = "data{order[0]}"\n')
        settings = dataclasses.replace(Settings(), expected=Expected.read(tmp_path / "expected.toml"))
        (finding,) = [f for f in examine(path, settings) if f.what == "data"]
        assert finding.fine is fine
        if not fine:
            assert (
                "this site has 'x: weight' where the study has 'x: age': the same features in another order"
                in finding.message
            )
