"""How much a client works in an exchange of its own amount, whatever the run's."""

import pytest

from fedjax_core import Simulator
from fedjax_core.work import ONCE, TRAIN, Work
from tests.contracts import BATCH, assert_norm, built, run, usual


def test_an_epoch_of_its_own_and_a_trip_without_data_are_fedavg_of_one_epoch():
    """The zoo runs two epochs, of which these exchanges know nothing."""
    expected, seen = run(Simulator(*built("fedavg"), batch_size=BATCH, epochs=1, lanes=3))
    _, state, metrics = usual("two trips")
    assert_norm(state.params, expected.params, 1e-6)
    for got, one in zip(metrics, seen, strict=True):
        assert float(got["loss"]) == pytest.approx(float(one["loss"]), rel=1e-5)
        assert float(got["clients"]) == float(one["clients"])


def test_streamed_examples_are_not_read_for_a_trip_without_data():
    sim = Simulator(*built("two trips"), batch_size=BATCH, epochs=2, lanes=3, stream=True)
    state, _ = run(sim)
    assert_norm(state.params, usual("two trips")[1].params, 1e-6)
    assert sim._feed.room[Work(steps=0)] == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "epochs of Work must be a whole number of at least 1"),
        ({"steps": -1}, "steps of Work must be a whole number of at least 0"),
        ({"steps": 1.5}, "or None for the run's, got 1.5"),
        ({"epochs": 1, "steps": 1}, "Work takes epochs or steps, not both"),
    ],
)
def test_amounts_are_checked(settings, said):
    with pytest.raises(ValueError, match=said):
        Work(**settings)


def test_what_trains_may_end_early():
    assert [work.trains for work in (TRAIN, ONCE, Work(steps=1), Work(steps=0), Work(epochs=2))] == [
        True,
        False,
        True,
        False,
        True,
    ]
