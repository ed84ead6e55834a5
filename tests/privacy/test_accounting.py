"""Every epsilon is that of dp-accounting 0.6, to the figures that it gave when they were written down, and
noise is found back."""

import math

import pytest

from fedjax_core import privacy
from fedjax_core.privacy.accounting import least
from fedjax_core.sites.policy import privacy_ledger

dp = pytest.importorskip("dp_accounting")

TOLERANCE = 1e-3
# (rate, noise, rounds, delta): epsilon by RDP and by PLD, with or without one client. The first is Abadi et
# al.'s, who published 1.26.
POISSON = [
    (0.01, 4, 10000, 1e-5, 1.03549, 0.94700),
    (0.01, 1, 1000, 1e-5, 2.10137, 1.82824),
    (0.01, 1, 1, 1e-5, 0.95555, 0.19945),
    (0.1, 1, 100, 1e-5, 7.90385, 7.04660),
    (0.02, 1.2, 500, 1e-6, 2.48605, 2.25615),
    (1, 10, 100, 1e-5, 4.72851, 4.37718),
    (256 / 60000, 1.3, 3515, 1e-5, 0.95443, 0.86446),
    (250 / 60000, 1.1, 14400, 1e-5, 2.56172, 2.34964),
    (0.001, 0.8, 1500, 1e-6, 1.48641, 0.51895),
    (0.5, 3, 50, 1e-3, 4.61333, 4.03435),
    (0.1, 1, 100, 1e-3, 5.65505, 4.78435),
    (5000 / 763430, 1, 4980, 1e-9, 4.17597, 3.89127),
]


@pytest.mark.parametrize(("rate", "noise", "rounds", "delta", "rdp", "pld"), POISSON)
def test_poisson_rounds(rate, noise, rounds, delta, rdp, pld):
    assert privacy.epsilon(noise, rate, rounds, delta, accountant="rdp") == pytest.approx(rdp, abs=TOLERANCE)
    assert privacy.epsilon(noise, rate, rounds, delta) == pytest.approx(pld, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("population", "cohort", "noise", "rounds", "delta", "expected"),
    [
        (10000, 100, 1, 1000, 1e-5, 3.57611),
        (60000, 256, 1.3, 3515, 1e-5, 1.99438),
        (1000, 100, 1, 100, 1e-5, 14.05375),
        (100, 10, 1, 100, 1e-3, 10.81539),
    ],
)
def test_fixed_cohorts_are_counted_as_such(population, cohort, noise, rounds, delta, expected):
    found = privacy.epsilon(
        noise, rounds=rounds, delta=delta, sampling="fixed", population=population, cohort=cohort
    )
    assert found == pytest.approx(expected, abs=TOLERANCE)
    # what those pay who draw so and count as Poisson
    assert found > privacy.epsilon(noise, cohort / population, rounds, delta)


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        (110, 7.6820),
        pytest.param(128, 4.0128, marks=pytest.mark.slow),
        pytest.param(150, 1.8305, marks=pytest.mark.slow),
        pytest.param(200, 1.8282, marks=pytest.mark.slow),
    ],
)
def test_what_is_cut_off_is_paid_for(cap, expected):
    found = privacy.epsilon(
        1.0, rounds=1000, delta=1e-5, sampling="truncated", population=10000, cohort=100, cap=cap
    )
    assert found == pytest.approx(expected, abs=TOLERANCE)


def test_other_neighbours():
    assert privacy.epsilon(1.0, 0.01, 1000, 1e-5, neighbours="replace-one") == pytest.approx(
        2.84345, abs=TOLERANCE
    )


@pytest.mark.slow
def test_people_with_several_rows():
    assert privacy.epsilon(1.0, 0.01, 1000, 1e-5, examples=4) == pytest.approx(8.8992, abs=TOLERANCE)


def test_any_event_of_the_library():
    of = privacy.epsilon_of
    # DP-FTRL's published 8.9
    assert of(dp.ZCDpEvent(0.81), 1e-10, "rdp") == pytest.approx(8.9223, abs=TOLERANCE)
    assert of(dp.ZCDpEvent(0.1), 1e-6, "rdp") == pytest.approx(2.1430, abs=TOLERANCE)
    for noise, leaves, delta, expected in ((10, 1024, 1e-6, 1.54940), (7, 2000, 1e-10, 3.06554)):
        tree = dp.SingleEpochTreeAggregationDpEvent(noise, leaves)
        assert of(tree, delta, "rdp", "replace-special") == pytest.approx(expected, abs=TOLERANCE)
    assert of(dp.SelfComposedDpEvent(dp.LaplaceDpEvent(1), 10), 1e-6) == pytest.approx(9.99898, abs=TOLERANCE)


CALIBRATED = [
    (2, 1e-3, 1500, 1e-6, 0.71378, 0.61615),
    (2, 0.01, 1000, 1e-5, 1.02229, 0.95910),
    (8, 0.1, 100, 1e-5, 0.99373, 0.93593),
    (2, 1, 100, 1e-5, 21.4911, 19.9381),
    (3, 0.5, 50, 1e-3, 4.19076, 3.77260),
]


@pytest.mark.parametrize(
    ("epsilon", "rate", "rounds", "delta", "noise", "accountant"),
    [(*row[:4], row[4], "rdp") for row in CALIBRATED]
    + [
        pytest.param(*row[:4], row[5], "pld", marks=() if i == 3 else pytest.mark.slow)
        for i, row in enumerate(CALIBRATED)
    ],
)
def test_the_noise_for_an_epsilon(epsilon, rate, rounds, delta, noise, accountant):
    found = privacy.noise_for(epsilon, rate, rounds, delta, accountant=accountant)
    assert found == pytest.approx(noise, rel=TOLERANCE)
    assert epsilon - 1e-3 <= privacy.epsilon(found, rate, rounds, delta, accountant=accountant) <= epsilon


ANALYTIC = [(0.5, 1e-5, 7.03183), (1, 1e-5, 3.73063), (2, 1e-5, 1.99381), (3, 1e-5, 1.39059), (8, 1e-5, 0.60023), (10, 1e-5, 0.49989),
            (1, 1e-6, 4.22468), (3, 1e-6, 1.54386), (10, 1e-6, 0.54109)]  # fmt: skip


@pytest.mark.parametrize(
    ("epsilon", "delta", "noise"),
    [pytest.param(*row, marks=pytest.mark.slow if row[0] > 2 else ()) for row in ANALYTIC],
)
def test_one_round_of_everyone_is_the_analytic_gaussian(epsilon, delta, noise):
    assert privacy.noise_for(epsilon, delta=delta, sampling="everyone") == pytest.approx(noise, rel=1e-4)


@pytest.mark.parametrize(
    ("per", "rate", "expected"), [(1, 0.01, 2.14760), (4, 0.04, 4.87724), (16, 0.16, 10.40718)]
)
def test_banded_noise_over_groups_that_take_turns(per, rate, expected):
    """A client's group has its turn in 1024 / bands rounds, and in each of these the client is drawn with
    bands times the rate."""
    assert privacy.epsilon(1.0, rate, 1024 // per, 1e-6) == pytest.approx(expected, abs=TOLERANCE)


def test_the_ledger_of_a_site_is_the_closed_form_of_the_same():
    """Why it stays: it is asked before each update leaves, of numbers that a site has at hand, and needs no
    library that sites lack."""
    for told, delta in ((1.0, 1e-5), (0.03, 1e-6), (4.0, 1e-9), (25.0, 1e-3)):
        exact = dp.pld.privacy_loss_mechanism.GaussianPrivacyLoss(1 / math.sqrt(told))
        found = privacy_ledger.epsilon(told, delta)
        assert exact.get_delta_for_epsilon(found) == pytest.approx(delta, rel=1e-6)
        assert privacy.epsilon(
            1 / math.sqrt(told), rounds=1, delta=delta, sampling="everyone"
        ) == pytest.approx(found, abs=1e-4)


def test_more_noise_fewer_rounds_and_fewer_clients_tell_less():
    def told(noise=1.0, rate=0.02, rounds=100, delta=1e-5):
        return privacy.epsilon(noise, rate, rounds, delta, accountant="rdp")

    assert (
        told(noise=2.0) < told()
        and told(rate=0.01) < told()
        and told(rounds=50) < told()
        and told(delta=1e-4) < told()
    )
    assert told(rounds=0) == 0 and told(noise=0.0) == math.inf


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"noise": -1.0, "rate": 0.1}, "noise must be 0 or more"),
        ({"noise": math.nan, "rate": 0.1}, "noise must be 0 or more"),
        ({"noise": 1.0, "rate": 1.1}, "rate is the probability"),
        ({"noise": 1.0, "rate": 0.1, "delta": 0.0}, "delta must be between 0 and 1"),
        ({"noise": 1.0, "rate": 0.1, "rounds": 1.5}, "rounds must be a whole number"),
        ({"noise": 1.0}, 'sampling="poisson" needs rate='),
        ({"noise": 1.0, "rate": 0.1, "sampling": "fixed"}, "needs population= and cohort="),
        ({"noise": 1.0, "sampling": "truncated", "population": 10, "cohort": 2}, "needs cap="),
        ({"noise": 1.0, "rate": 0.1, "sampling": "shuffled"}, "sampling must be"),
        ({"noise": 1.0, "population": 10, "cohort": 11}, "cohort must be from 1 to the population"),
        ({"noise": 1.0, "rate": 0.5, "population": 10, "cohort": 4}, "rate=0.5 is not cohort / population"),
        (
            {"noise": 1.0, "sampling": "fixed", "population": 10, "cohort": 4, "accountant": "pld"},
            "does not know this sampling",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        privacy.epsilon(**{"rounds": 1, "delta": 1e-5, **arguments})


def test_the_least_that_is_enough():
    assert least(lambda x: 3 / x - 1, start=1.0) == pytest.approx(3, rel=1e-6)
    assert least(lambda x: 3 / x - 1, start=50.0) == pytest.approx(3, rel=1e-6)
    with pytest.raises(ValueError, match="no noise up to"):
        least(lambda x: 1.0, start=1.0)
