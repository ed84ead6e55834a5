"""The names of features go with their columns, and put them in order; the order of a dictionary is
nothing."""

import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.data.clients import Clients
from fedjax_core.sites.site.load import load_data
from fedjax_core.sites.site_file import SiteFile

NAMES = ("age", "weight", "height")


class Frame:
    """A data frame of pandas as far as it matters here."""

    def __init__(self, **columns):
        self.columns, self.values, self.iloc = list(columns), list(columns.values()), self

    def __getitem__(self, at):
        return self.values[self.columns.index(at) if isinstance(at, str) else at[1]]

    def __len__(self):
        return len(self.values[0])

    def isna(self):
        raise AssertionError("each column is asked, not all")

    to_numpy = isna


def two(**rest):
    x = np.arange(12.0).reshape(4, 3)
    return Clients.from_list(
        [{"x": x[:3], "y": np.arange(3)}, {"x": x[3:], "y": np.arange(1)}],
        **{"features": {"x": NAMES}, **rest},
    )


def test_names_go_where_the_columns_go(tmp_path):
    clients = two(ids=["a", "b"])
    clients.save(tmp_path / "data")
    others = (
        clients.select([1]), *clients.split(0.7), Clients.open(tmp_path / "data"), clients.without("y"), clients.take(np.array([0, 3])),
        clients.with_ids([5, 6]), fc.preprocess.fit([fc.preprocess.Standardise("x")], clients).apply(clients),
        clients.with_columns({"y": clients.columns["y"], "x": clients.columns["x"] + 1}),
    )  # fmt: skip
    assert {tuple(other.features.items()) for other in others} == {(("x", NAMES),)}
    assert (
        clients.with_columns({"x": clients.columns["x"][:, :2]}).features
        == {}
        == clients.without("x").features
    )
    assert clients.fingerprint() not in (
        two(ids=["a", "b"], features=None).fingerprint(),
        two(features={"x": NAMES[::-1]}).fingerprint(),
    )


def test_features_are_put_in_order_by_their_names():
    clients = two()
    swapped = clients.arranged({"x": ("height", "age", "weight")})
    np.testing.assert_array_equal(swapped.columns["x"], clients.columns["x"][:, [2, 0, 1]])
    assert (
        swapped.features == {"x": ("height", "age", "weight")}
        and swapped.arranged({"x": NAMES}).fingerprint() == clients.fingerprint()
    )
    for wanted, said in (
        (("age", "weight", "sex"), r"column 'x' has no feature 'sex'; it has 'age', 'weight', 'height'"),
        (("age", "weight"), r"column 'x' has the feature 'height', which is not wanted"),
    ):
        with pytest.raises(ValueError, match=said):
            clients.arranged({"x": wanted})
    with pytest.raises(ValueError, match="column 'x' has no names of its features"):
        two(features=None).arranged({"x": NAMES})


def test_columns_of_their_own_are_joined_in_the_order_that_is_asked():
    one = {"weight": np.array([1.0, 2.0]), "age": np.array([30, 40]), "y": np.array([0, 1])}
    joined = Clients.from_list([one]).arranged({"x": ["age", "weight"]})
    assert joined.columns["x"].tolist() == [[30.0, 1.0], [40.0, 2.0]] and sorted(joined.columns) == ["x", "y"]
    other = Clients.from_list([dict(reversed(one.items()))]).arranged({"x": ["age", "weight"]})
    assert other.fingerprint() == joined.fingerprint()
    with pytest.raises(
        ValueError, match=r"no column 'x', and no column 'sex' to make it of; there are age, weight, y"
    ):
        Clients.from_list([one]).arranged({"x": ["age", "sex"]})
    with pytest.raises(
        ValueError,
        match=r"column 'ward', of which 'x' is to be made, must hold a number an example, got text\[\]",
    ):
        Clients.from_list([{**one, "ward": np.array(["a", "b"])}]).arranged({"x": ["age", "ward"]})


def test_a_frame_says_its_names_and_clients_frames_are_put_in_one_order():
    first = Frame(age=np.array([1.0, 2.0]), weight=np.array([3.0, 4.0]))
    second = Frame(weight=np.array([7.0]), age=np.array([8.0]))
    clients = Clients.from_list([{"x": first}, {"x": second}])
    assert clients.features == {"x": ("age", "weight")} and clients.columns["x"].tolist() == [
        [1, 3],
        [2, 4],
        [8, 7],
    ]
    with pytest.raises(
        ValueError, match=r"client 1 \(id 1\): column 'x' has no feature 'weight'; it has 'age'"
    ):
        Clients.from_list([{"x": first}, {"x": Frame(age=np.array([8.0]))}])


def test_a_frame_for_all_columns_is_these_by_their_names():
    first, second = (
        Frame(x=np.array([1.0, 2.0]), y=np.array([0, 1])),
        Frame(y=np.array([1]), x=np.array([3.0])),
    )
    clients = Clients.from_list([first, second])
    assert clients.columns["x"].tolist() == [1, 2, 3] and clients.columns["y"].tolist() == [0, 1, 1]
    assert load_data(SiteFile(name="charite", data=second)).columns["x"].tolist() == [3]


@pytest.mark.parametrize(
    ("features", "error", "said"),
    [
        ({"z": NAMES}, ValueError, "has names for 'z', which is no column; the columns are x, y"),
        ({"x": NAMES[:2]}, ValueError, r"has 2 names for column 'x', whose rows are \[3\]"),
        ({"y": ["label"]}, ValueError, r"has 1 names for column 'y', whose rows are \[\]"),
        ({"x": ["a", "b", "a"]}, ValueError, "the feature 'a' of 'x' is there twice"),
        ({"x": ["a", "b", "c\n"]}, ValueError, r"the feature 'c\\n' of 'x' is there twice, or is not a name"),
        ({"x": "abc"}, TypeError, "must be a list of texts"),
    ],
)
def test_names_that_cannot_be_are_refused(features, error, said):
    with pytest.raises(error, match=said):
        two(features=features)
