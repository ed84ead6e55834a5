import numpy as np
import pytest

from fedjax_core.data.batches import Plan, in_order
from fedjax_core.work import TRAIN, Work

SIZES = np.array([5, 0, 1, 12])
OFFSETS = np.r_[0, SIZES.cumsum()]
ADDRESSES = np.stack([np.zeros(4), np.arange(4)], 1).astype(np.uint32)


def of(plan, clients, round):
    return plan.batches(np.asarray(clients), OFFSETS, ADDRESSES, round)


def per_client(rows, steps):
    return np.split(rows, np.cumsum(steps)[:-1])


def test_each_epoch_holds_every_example_once_and_keeps_the_short_batch():
    rows, steps = of(Plan(4, epochs=3), [3, 0, 1, 2], round=7)
    assert steps.tolist() == [9, 6, 0, 3]
    for client, mine in zip([3, 0, 1, 2], per_client(rows, steps), strict=True):
        for epoch in np.split(mine, 3):
            expected = np.arange(OFFSETS[client], OFFSETS[client + 1])
            assert sorted(epoch[epoch >= 0]) == expected.tolist()
            assert all((batch >= 0).all() for batch in epoch[:-1])


def test_padding_reads_the_clients_own_examples():
    rows, steps = of(Plan(4, epochs=1), [0, 2, 3], round=0)
    for client, mine in zip([0, 2, 3], per_client(rows, steps), strict=True):
        real = np.where(mine < 0, ~mine, mine)
        assert ((real >= OFFSETS[client]) & (real < OFFSETS[client + 1])).all()


def test_a_round_of_a_client_does_not_depend_on_who_else_takes_part():
    plan = Plan(4, epochs=2, seed=3)
    together = per_client(*of(plan, [0, 2, 3], round=5))
    for client, mine in zip([0, 2, 3], together, strict=True):
        assert np.array_equal(of(plan, [client], round=5)[0], mine)


def test_rounds_seeds_clients_and_epochs_shuffle_differently():
    base = of(Plan(12, epochs=2), [3], round=0)[0]
    assert not np.array_equal(base[0], base[1])
    assert not np.array_equal(base, of(Plan(12, epochs=2), [3], round=1)[0])
    assert not np.array_equal(base, of(Plan(12, epochs=2, seed=1), [3], round=0)[0])


def test_shuffles_are_uniform():
    """Over 6,000 rounds every example of five is in every place about as often: chi-square with 16 degrees of
    freedom below 50."""
    plan = Plan(5, epochs=1)
    places = np.stack([of(plan, [0], round)[0][0] for round in range(6000)])
    counts = np.stack([(places == value).sum(axis=0) for value in range(5)])
    assert ((counts - 1200) ** 2 / 1200).sum() < 50
    following = np.unique(places[:, 0] * 5 + places[:, 1], return_counts=True)[1]
    assert len(following) == 20 and ((following - 300) ** 2 / 300).sum() < 60


def test_a_function_says_how_much_each_client_does_in_a_round():
    def amount(round, positions):
        return 1 + (positions + round) % 4

    rows, steps = of(Plan(4, epochs=amount), [3, 0, 1, 2], round=5)
    assert steps.tolist() == [3, 4, 0, 4]
    for client, epochs, mine in zip([3, 0, 2], [1, 2, 4], [rows[:3], rows[3:7], rows[7:]], strict=True):
        assert np.array_equal(mine, of(Plan(4, epochs=epochs), [client], round=5)[0])
    rows, steps = of(Plan(4, steps=amount), [3, 0, 1, 2], round=6)
    assert steps.tolist() == [2, 3, 0, 1]
    for client, number, mine in zip([3, 0, 2], [2, 3, 1], [rows[:2], rows[2:5], rows[5:]], strict=True):
        assert np.array_equal(mine, of(Plan(4, epochs=4), [client], round=6)[0][:number])


def test_one_number_may_be_for_all_and_a_client_by_itself_is_asked_for_by_its_position():
    assert of(Plan(4, steps=lambda round, positions: round), [0, 3], round=2)[1].tolist() == [2, 2]
    plan = Plan(4, steps=lambda round, positions: 1 + positions)
    alone, _ = plan.of_client(3).batches(np.zeros(1, int), np.array([0, 12]), ADDRESSES[3:], 1)
    assert np.array_equal(np.where(alone < 0, alone - 6, alone + 6), of(plan, [3], round=1)[0])
    assert str(plan) == "batch_size=4, steps=..., seed=0" and plan.changes and not Plan(4, steps=3).changes


def test_the_room_for_steps_that_change_is_the_most_of_the_first_rounds():
    plan = Plan(4, steps=lambda round, positions: 1 + (positions + round) % 5)
    assert plan.most_steps(SIZES).tolist() == [5, 0, 5, 5]
    assert Plan(4, epochs=2).most_steps(SIZES).tolist() == [4, 0, 2, 6]


@pytest.mark.parametrize("given", [[1, 0], [1.5, 2.0], [1, 2, 3], "many"])
def test_a_function_that_gives_no_number_for_each_is_refused(given):
    with pytest.raises(
        ValueError,
        match=r"steps= gave .* for 2 clients in round 3: it needs a whole number of at least 1 for each",
    ):
        of(Plan(4, steps=lambda round, positions: np.array(given)), [0, 3], round=3)
    with pytest.raises(ValueError, match="steps= that is a function needs order= that is one"):
        Plan(4, steps=lambda round, positions: 1, order=np.zeros((4, 2, 4), int))


def test_steps_walk_on_through_epochs():
    plan = Plan(4, steps=2)
    walk = np.concatenate([of(plan, [3], round)[0] for round in range(6)])  # 12 batches: 4 epochs of 3
    for epoch in np.split(walk, 4):
        assert sorted(epoch.ravel()) == list(range(6, 18))
    short = np.concatenate([of(plan, [0], round)[0] for round in range(3)])  # 6 batches: 3 epochs of 2
    assert [int((batch >= 0).sum()) for batch in short] == [4, 1] * 3


def test_order_is_taken_as_it_is():
    order = np.array([[[0, 1], [2, -1]], [[0, 0], [0, 0]], [[0, -1], [0, -1]], [[5, 6], [7, 8]]])
    rows, steps = of(Plan(2, order=order), [0, 1, 3], round=4)
    assert steps.tolist() == [2, 0, 2]
    assert rows.tolist() == [[0, 1], [2, ~2], [11, 12], [13, 14]]
    walked = of(Plan(2, steps=1, order=order), [3], round=1)[0]
    assert walked.tolist() == [[13, 14]]
    given = Plan(2, steps=1, order=lambda round, client: [[round, client]])
    assert of(given, [3], round=2)[0].tolist() == [[8, 9]]


def test_an_exchange_may_have_its_own_amount():
    plan = Plan(4, epochs=3, seed=2)
    assert plan.of(TRAIN) is plan
    for work, same in (
        (Work(epochs=1), Plan(4, epochs=1, seed=2)),
        (Work(steps=2), Plan(4, steps=2, seed=2)),
    ):
        for got, expected in zip(of(plan.of(work), [3, 0, 1], 5), of(same, [3, 0, 1], 5), strict=True):
            assert np.array_equal(got, expected)
    rows, steps = of(plan.of(Work(steps=0)), [3, 0, 1], 5)
    assert rows.shape == (0, 4) and steps.tolist() == [0, 0, 0]


def test_an_exchange_may_go_through_the_data_as_they_are_stored():
    given = Plan(5, order=np.zeros((4, 1, 5), int))  # of which it takes no notice
    for epochs, plan in ((1, given), (1, Plan(5, steps=7)), (2, Plan(5, epochs=3))):
        rows, steps = of(plan.of(Work(epochs=epochs, shuffled=False)), [3, 1, 0], round=4)
        assert steps.tolist() == [3 * epochs, 0, epochs]
        assert rows[rows >= 0].tolist() == [*range(6, 18)] * epochs + [*range(5)] * epochs
    assert of(Plan(5, epochs=2).of(Work(shuffled=False)), [0], 0)[0].tolist() == [[0, 1, 2, 3, 4]] * 2
    # on and on
    walk = np.concatenate([of(given.of(Work(steps=2, shuffled=False)), [3], round)[0] for round in range(3)])
    assert walk[walk >= 0].tolist() == [*range(6, 18)] * 2


def test_in_order_holds_everything_once():
    rows, steps = in_order(np.array([3, 1, 0]), OFFSETS, 5)
    assert steps.tolist() == [3, 0, 1]
    assert rows[rows >= 0].tolist() == [*range(6, 18), *range(5)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 4, "epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 4, "steps": 1.5}, "steps must be a whole number of at least 1, got 1.5"),
        ({"batch_size": 4, "steps": 1, "epochs": 1}, "give epochs or steps, not both"),
        (
            {"batch_size": 4, "order": np.zeros((1, 2, 3), int)},
            r"integer array \[clients, updates, batch_size=4\], got int64\[1, 2, 3\]",
        ),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Plan(**settings)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (np.full((4, 1, 2), 5), "order for client 0 in round 0 must name examples 0 to 4"),
        (np.full((4, 1, 2), -1), "at least one a batch"),
        (np.zeros((4, 0, 2), int), "order holds 0 batches for 4 clients; round 0 of client 0 needs 1"),
    ],
)
def test_orders_are_checked(order, message):
    with pytest.raises(ValueError, match=message):
        of(Plan(2, steps=1, order=order), [0], round=0)
