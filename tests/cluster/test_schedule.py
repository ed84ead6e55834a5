import numpy as np

from fedjax_core.cluster.schedule import assign_to_workers, room_for, split_cohort
from fedjax_core.data.batches import Plan
from fedjax_core.lanes.pack import assign, slots_bound
from fedjax_core.work import ONCE, TRAIN


def test_every_client_with_work_is_in_one_share_and_no_share_waits_long():
    load = np.random.default_rng(0).integers(0, 50, 200)
    shares = split_cohort(load, 7)
    assert sorted(np.concatenate(shares).tolist()) == np.flatnonzero(load).tolist()
    each = [load[at].sum() for at in shares]
    assert max(each) - min(each) <= load.max()


def test_a_worker_of_twice_the_speed_gets_twice_the_shares():
    chosen = assign_to_workers([10.0] * 9, speeds=[1.0, 2.0])
    assert (chosen.count(0), chosen.count(1)) == (3, 6)


def test_who_is_busy_gets_less():
    assert assign_to_workers([4.0, 4.0], speeds=[1.0, 1.0], busy=[20.0, 0.0]) == [1, 1]


def test_any_share_of_any_cohort_fits_the_room():
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(3, 1.5, 300).astype(np.int64)
    steps = {TRAIN: Plan(4, epochs=2).steps_of(sizes), ONCE: -(-sizes // 4)}
    load = steps[TRAIN] + steps[ONCE]
    room = room_for(40, 3, 5, steps, load, sizes)
    for cohort in [
        *(rng.choice(300, 40, replace=False) for _ in range(50)),
        *(rng.choice(300, 3, replace=False) for _ in range(20)),
    ]:
        for at in split_cohort(load[cohort], 3):
            who = cohort[at]
            assert sizes[who].sum() <= room.examples[TRAIN]
            for kind, each in steps.items():
                _, start = assign(each[who], room.lanes)
                assert (start + each[who]).max(initial=0) <= room.slots[kind]
    assert room.slots[TRAIN] < slots_bound(steps[TRAIN], 40, 5)  # and is less than that of the whole cohort
