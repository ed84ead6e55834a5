"""Partitions: every example to exactly one client, in the proportions that were asked for."""

import numpy as np
import pytest

from fedjax_core.data import partition

LABELS = np.random.default_rng(0).integers(0, 10, 1000)

EVERY = {
    "iid": lambda seed: partition.iid(1000, 7, seed),
    "dirichlet": lambda seed: partition.dirichlet(LABELS, clients=7, alpha=0.1, seed=seed),
    "dirichlet, min_size": lambda seed: partition.dirichlet(
        LABELS, clients=7, alpha=0.5, seed=seed, min_size=20
    ),
    "shards": lambda seed: partition.shards(LABELS, 7, 3, seed=seed),
    "quantity": lambda seed: partition.quantity(LABELS, 7, alpha=0.5, seed=seed),
    "quantity, log-normal": lambda seed: partition.quantity(1000, 7, sigma=1.0, seed=seed, min_size=3),
    "by_owner": lambda seed: partition.by_owner(np.random.default_rng(seed).integers(0, 7, 1000)),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_example_goes_to_exactly_one_client(name):
    parts = EVERY[name](0)
    assert len(parts) == 7 and all(part.dtype == np.int64 for part in parts)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(1000))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert [part.tolist() for part in EVERY[name](0)] == [part.tolist() for part in parts]
    assert [part.tolist() for part in EVERY[name](1)] != [part.tolist() for part in parts]


def test_iid_sizes_differ_by_one_at_most():
    assert sorted(len(part) for part in partition.iid(LABELS[:100], 7)) == [14] * 5 + [15] * 2


def test_dirichlet_proportions_have_the_moments_of_dir_alpha():
    """p_k ~ Dir_N(alpha) has mean 1/N and variance (1/N)(1 - 1/N) / (N alpha + 1)."""
    clients, alpha, classes, rows = 5, 0.3, 400, 500
    labels = np.repeat(np.arange(classes), rows)
    share = partition.describe(partition.dirichlet(labels, clients, alpha, seed=1), labels) / rows
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert np.allclose(share.mean(axis=1), 1 / clients, atol=5 * np.sqrt(variance / classes))
    assert np.isclose(share.var(), variance, rtol=0.1)


def test_dirichlet_large_alpha_is_even_and_small_alpha_is_not():
    labels = np.repeat(np.arange(10), 1000)
    even = partition.describe(partition.dirichlet(labels, clients=10, alpha=1e6), labels)
    assert even.min() > 95 and even.max() < 105
    single = partition.describe(partition.dirichlet(labels, clients=10, alpha=1e-8), labels)
    assert (single.max(axis=0) > 990).all()


def test_dirichlet_min_size_holds():
    parts = partition.dirichlet(LABELS, clients=20, alpha=0.3, seed=0, min_size=10)
    assert min(len(part) for part in parts) >= 10


def test_shards_give_each_client_few_classes():
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 60))
    counts = partition.describe(partition.shards(labels, clients=100, shards_per_client=2, seed=0), labels)
    assert (counts.sum(axis=1) == 6).all()
    assert (counts > 0).sum(axis=1).max() == 2
    assert set(np.unique(counts)) <= {0, 3, 6}  # a shard of 3 has one class, for 60 is a multiple of 3


def test_quantity_sizes_have_the_moments_of_dir_alpha():
    clients, alpha, n = 2000, 2.0, 1_000_000
    sizes = np.array([len(part) for part in partition.quantity(n, clients, alpha=alpha, seed=0)])
    assert np.isclose(sizes.std() / sizes.mean(), 1 / np.sqrt(alpha), rtol=0.1)


def test_quantity_log_normal_spread():
    sizes = np.array([len(part) for part in partition.quantity(1_000_000, 2000, sigma=0.5, seed=0)])
    assert np.isclose(np.log(sizes).std(), 0.5, rtol=0.1)


def test_owners_are_sorted_and_named():
    owners = np.array(["b", "a", "b", "c"], object)
    assert [part.tolist() for part in partition.by_owner(owners)] == [[1], [0, 2], [3]]
    assert partition.owner_names(owners).tolist() == ["a", "b", "c"]


def test_describe_counts_by_distinct_label():
    assert partition.describe([np.array([0, 1, 2]), np.array([3])], np.array([5, 9, 5, 9])).tolist() == [
        [2, 1],
        [0, 1],
    ]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: partition.iid(10, 0), ValueError, "clients must be a whole number of at least 1, got 0"),
        (lambda: partition.iid(10, 2.5), ValueError, "clients must be a whole number of at least 1, got 2.5"),
        (lambda: partition.iid(3, 4), ValueError, "cannot deal 3 examples to 4 clients"),
        (lambda: partition.iid(0, 1), ValueError, "no examples to deal out"),
        (
            lambda: partition.iid(10, 2, seed=-1),
            ValueError,
            "seed must be a whole number of at least 0, got -1",
        ),
        (lambda: partition.dirichlet(LABELS, alpha=0), ValueError, "alpha must be a positive number, got 0"),
        (lambda: partition.dirichlet(LABELS, alpha=np.nan), ValueError, "alpha must be a positive number"),
        (
            lambda: partition.dirichlet(LABELS, clients=100, min_size=11),
            ValueError,
            "needs 1100 examples, but there are 1000",
        ),
        (
            lambda: partition.dirichlet(LABELS, 100, 1e-3, min_size=5),
            ValueError,
            "use a larger alpha, fewer clients or a smaller min_size",
        ),
        (lambda: partition.dirichlet(LABELS[:, None]), ValueError, r"one-dimensional .*shape \[1000, 1\]"),
        (
            lambda: partition.dirichlet(LABELS.astype(float)),
            TypeError,
            "labels must be integers, bools or strings, got float64",
        ),
        (
            lambda: partition.shards(LABELS, 501, 2),
            ValueError,
            "need 1002 shards, but there are only 1000 examples; use at most 500",
        ),
        (
            lambda: partition.shards(LABELS, 5, 0),
            ValueError,
            "shards_per_client must be a whole number of at least 1",
        ),
        (lambda: partition.quantity(10, 2, alpha=1.0, sigma=1.0), ValueError, "not both"),
        (lambda: partition.quantity(10, 2, sigma=-1.0), ValueError, "sigma must be a positive number"),
        (lambda: partition.by_owner([]), ValueError, "owners must be a one-dimensional array"),
        (
            lambda: partition.by_owner(np.array(["a", None], object)),
            TypeError,
            "owners must be integers, bools or strings",
        ),
    ],
)
def test_refuses(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_realised_skew_is_that_of_the_draws():
    labels = np.repeat(np.arange(400), 1000)
    parts = partition.dirichlet(labels, clients=20, alpha=0.3, seed=1)
    squares = ((partition.describe(parts, labels) / 1000) ** 2).sum(axis=0)
    wanted = (0.3 + 1) / (20 * 0.3 + 1)
    assert abs(squares.mean() - wanted) < 3 * squares.std() / np.sqrt(400)  # the mean of Dir(0.3)
    found = partition.skew(parts, labels).alpha
    assert (found + 1) / (20 * found + 1) == pytest.approx(squares.mean(), rel=1e-9) and abs(
        found - 0.3
    ) < 0.05
    half = partition.skew([np.array([0, 1]), np.array([2, 3, 4]), np.array([], int)], [0, 0, 1, 1, 0])
    assert half[:4] == (0, 3, pytest.approx((0.4 + 4 / 15) / 2), 1.5)
    even = partition.skew([np.array([0, 1]), np.array([2, 3])], [0, 1, 0, 1])
    assert even == (2, 2, 0.0, 2.0, np.inf)
