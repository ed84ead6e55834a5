"""One coding of categories for all clients: from what they tell, or as it was given."""

import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.data import preprocess
from fedjax_core.data.preprocess import OrdinalEncode

SIZES = (23, 5, 1, 4)


def test_a_vocabulary_has_what_somebody_has_often_enough():
    sex = np.random.default_rng(0).integers(0, 3, sum(SIZES)) * 10 - 10
    sex[5] = 77
    raw = fc.Clients.from_arrays({"sex": sex}, np.cumsum([0, *SIZES]))
    fitted = preprocess.fit([OrdinalEncode("sex", minimum=2)], raw)
    each = [np.unique(raw[i]["sex"], return_counts=True) for i in range(len(raw))]
    expected = sorted(
        {int(v) for values, counts in each for v, n in zip(values, counts, strict=True) if n >= 2}
    )
    assert fitted.parameters[0]["values"].tolist() == expected and 77 not in expected
    codes = fitted.apply(raw).columns["sex"]
    assert codes[5] == len(expected)
    known = codes < len(expected)
    np.testing.assert_array_equal(np.array(expected)[codes[known]], raw.columns["sex"][known])


def test_text_of_clients_is_coded_by_one_list():
    wards = [np.array(["icu", "ear"] * 5), np.array(["ear", "oncology"] * 5), np.array(["Zürich"])]
    raw = fc.Clients.from_list([{"ward": w} for w in wards])
    fitted = fc.preprocess.fit([OrdinalEncode("ward")], raw)
    coded = [c["ward"].tolist()[:2] for c in fitted.apply(raw)]
    assert coded == [[1, 0], [0, 2], [3]]  # ear, icu, oncology; what only few have is 3
    assert fitted.steps[0].validate({**fitted.parameters[0], "counts": np.array([10, 5, 5])}, 21) is None
    assert "order" in fitted.steps[0].validate({**fitted.parameters[0], "counts": np.array([10, 5])}, 21)


def test_categories_that_are_given_have_their_order_and_ask_nobody():
    raw = fc.Clients.from_list(
        [{"y": np.array(["malignant"] * 3)}, {"y": np.array(["benign", "malignant", "?"])}]
    )
    step = OrdinalEncode("y", categories=["malignant", "benign"])
    fitted = fc.preprocess.fit([step], raw)
    assert [c["y"].tolist() for c in fitted.apply(raw)] == [[0, 0, 0], [1, 0, 2]]
    assert step.releases == () and not any(len(x) for x in step.sums(raw.columns["y"], 0).values())
    whole = fc.Clients.from_list([{"y": np.array([2, 1, 9])}])
    assert fc.preprocess.fit([OrdinalEncode("y", categories=(1, 2))], whole).apply(whole).columns[
        "y"
    ].tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="lists str values, and the column is int64"):
        fc.preprocess.fit([step], whole)
    for wrong in ("ab", (), ("a", 1), ("a", "a")):
        with pytest.raises(ValueError, match="categories= lists different"):
            OrdinalEncode("y", categories=wrong)
