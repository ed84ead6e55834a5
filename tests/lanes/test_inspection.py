"""What a round of a simulator shows of each client: what plain loops show, in the order of the cohort."""

import jax
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.lanes.inspection import PIECES
from tests.run.small import SIZES, clients

COHORT = [5, 2, 3, 0]  # client 2 has no examples


def pieces(**settings):
    """(a simulator, plain loops) of SCAFFOLD, whose clients keep something."""
    algorithm = fc.algorithms.scaffold(
        fc.models.logistic(features=3, classes=2), lr=0.1, population=len(SIZES)
    )
    composed = fc.compose(algorithm)
    return fc.Simulator(composed, clients(), batch_size=4, lanes=2, **settings), fc.Loops(
        composed, clients(), batch_size=4
    )


@pytest.mark.parametrize("cores", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_visits_are_those_of_plain_loops(cores):
    sim, loops = pieces(mesh=fc.cores(2) if cores == 2 else None)
    before, visits = sim.init(jax.random.key(0)), []
    after, metrics, (shown,) = sim.inspect(before, COHORT)
    expected, sums = loops.run(loops.init(jax.random.key(0)), COHORT, each=visits.append)
    assert shown.client.tolist() == COHORT and shown.here.tolist() == [True, False, True, True]
    assert [visit.client for visit in visits] == [5, 3, 0]
    rows = shown.update, shown.weight, shown.kept, shown.stats, shown.metrics
    assert not any(np.any(x[1]) for x in jax.tree.leaves(rows))
    for k, visit in zip((0, 2, 3), visits, strict=True):
        mine, other = (
            jax.tree.map(lambda x, k=k: x[k], rows),
            (visit.update, visit.weight, visit.kept, {}, visit.metrics),
        )
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), mine, other)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), after.params, expected.params)
    assert float(metrics["loss"]) == pytest.approx(float(sums["loss"]), rel=1e-5)


def test_a_wrong_piece_is_refused():
    sim, _ = pieces(mesh=None)
    with pytest.raises(ValueError, match=f"pieces are one or several of {', '.join(PIECES)}, got 'gradient'"):
        sim.inspect(None, [3], ["gradient"])
    with pytest.raises(ValueError, match="got none"):
        sim.inspect(None, [3], [])
