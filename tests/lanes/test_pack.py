import numpy as np
import pytest

from fedjax_core.lanes.pack import assign, lay_out, pack, slots_bound


@pytest.mark.parametrize("lanes", [1, 2, 7, 50])
def test_every_batch_is_in_one_slot_and_a_client_stays_in_its_lane(lanes):
    steps = np.random.default_rng(lanes).integers(0, 9, 30)
    rows = np.arange(steps.sum() * 2, dtype=np.int32).reshape(-1, 2)
    layout = lay_out(rows, steps, lanes)
    schedule = pack(layout, cohort=40, lanes=lanes, devices=1, capacity=300)
    busy = schedule.client < 40
    assert sorted(schedule.rows[busy][:, 0].tolist()) == rows[:, 0].tolist()
    for k, count in enumerate(steps):
        slot, lane = np.nonzero(schedule.client == k)
        assert len(set(lane)) == min(count, 1) and schedule.step[slot, lane].tolist() == list(range(count))
        assert (np.diff(slot) == 1).all()
        assert (schedule.rows[slot, lane, 0] // 2 == steps[:k].sum() + np.arange(count)).all()
    assert schedule.slots.tolist() == [busy.any(axis=1).sum()] * lanes == [layout.slots] * lanes


def test_longest_first_is_within_one_client_of_the_best():
    steps = np.random.default_rng(0).lognormal(2, 1, 500).astype(int)
    _, start = assign(steps, 16)
    assert (start + steps).max() <= steps.sum() / 16 + steps.max()
    assert steps.sum() / (16 * (start + steps).max()) > 0.95


def test_each_device_counts_its_own_slots():
    schedule = pack(
        lay_out(np.zeros((9, 1), np.int32), np.array([5, 1, 2, 1]), 4),
        cohort=4,
        lanes=4,
        devices=2,
        capacity=9,
    )
    assert schedule.slots.tolist() == [5, 5, 1, 1]


def test_the_bound_holds_for_random_cohorts():
    rng = np.random.default_rng(0)
    steps = rng.lognormal(1, 1, 2000).astype(int) + 1
    bound = slots_bound(steps, 100, 8)
    drawn = [rng.choice(steps, 100, replace=False) for _ in range(200)]
    needed = [lay_out(np.zeros((0, 1)), some, 8).slots for some in drawn]
    assert max(needed) <= bound <= 5 * max(needed)


def test_too_little_room_is_an_error():
    with pytest.raises(ValueError, match="5 slots do not fit a capacity of 4"):
        pack(lay_out(np.zeros((5, 1), np.int32), np.array([5]), 1), cohort=1, lanes=1, devices=1, capacity=4)
