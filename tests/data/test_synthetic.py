"""The FedProx population: its published distributions, addressed client by client."""

import numpy as np
import pytest

from fedjax_core.data.synthetic import synthetic


def test_shapes_and_sizes_are_the_published_ones():
    clients = synthetic(1, 1, seed=0)
    assert len(clients) == 30 and clients.columns["x"].shape[1] == 60
    assert clients.columns["x"].dtype == np.float32 and clients.columns["y"].dtype == np.int32
    clients.check_labels("y", classes=10)
    many = synthetic(0, 0, clients=400, features=1, seed=0)
    assert many.sizes.min() >= 50
    logs = np.log(many.sizes - 50 + 0.5)  # sizes - 50 is the whole part of a log-normal(4, 2)
    assert abs(np.median(logs) - 4) < 5 * 2 * 1.25 / 20  # a median's deviation is 1.25 sigma / sqrt(400)


def test_features_have_variance_j_to_the_minus_1_2():
    x = synthetic(1, 1, clients=1, sizes=[20_000], features=10)[0]["x"]
    assert np.allclose(x.var(axis=0), np.arange(1, 11) ** -1.2, rtol=0.06)


def test_b_spreads_the_means_of_the_clients():
    """The mean of client k's features is B_k + noise of variance (1 + small) / features."""
    for b in (0.0, 2.0):
        clients = synthetic(0, b, clients=400, features=60, classes=2, sizes=np.full(400, 50))
        means = np.array([own["x"].mean() for own in clients])
        assert np.isclose(means.var(), b**2 + 1 / 60, rtol=0.3)


def test_a_changes_nothing_for_it_moves_all_classes_alike():
    one, two = synthetic(0, 1, clients=3), synthetic(3, 1, clients=3)
    assert (one.columns["x"] == two.columns["x"]).all() and (one.columns["y"] == two.columns["y"]).all()


def test_iid_clients_share_one_model_and_have_mean_zero():
    """One linear rule explains all labels: where clients agree on x they agree on y."""
    clients = synthetic(0, 0, clients=3, iid=True, features=2, classes=3, sizes=[4000] * 3, seed=4)
    x, y = clients.columns["x"], clients.columns["y"]
    assert np.abs(x.mean(axis=0)).max() < 5 / np.sqrt(12_000)
    cells = np.round(x * 2).astype(int) @ [1000, 1]
    shares = [
        np.bincount(y[a:b], minlength=3) / 4000
        for a, b in zip(clients.offsets[:-1], clients.offsets[1:], strict=True)
    ]
    assert np.ptp(shares, axis=0).max() < 0.06
    pure = [np.bincount(y[cells == cell]).max() / (cells == cell).sum() for cell in np.unique(cells)]
    assert np.mean(pure) > 0.9


def test_a_client_does_not_depend_on_the_others():
    few, many = synthetic(1, 1, clients=2, seed=5), synthetic(1, 1, clients=4, seed=5)
    assert (few[1]["x"] == many[1]["x"]).all() and (few[1]["y"] == many[1]["y"]).all()
    assert few.fingerprint() != synthetic(1, 1, clients=2, seed=6).fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clients": 0}, "clients must be a whole number of at least 1, got 0"),
        ({"classes": 1}, "classes must be a whole number of at least 2"),
        ({"a": -1}, "must be finite and not negative, got a=-1"),
        ({"iid": True}, r"got a=1 and b=1; use synthetic\(0, 0, iid=True\)"),
        ({"sizes": [3, 4]}, r"sizes must be 30 whole numbers, one a client and not negative, got int64\[2\]"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        synthetic(**{"a": 1, "b": 1, **settings})
