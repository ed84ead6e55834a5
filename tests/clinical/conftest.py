import numpy as np
import pytest

from fedjax_core.clinical import performance


@pytest.fixture
def patients():
    """Sixty patients with rounded risks, so that many are tied."""
    rng = np.random.default_rng(1)
    outcome = (rng.random(60) < 0.4).astype(int)
    return performance.Predictions(outcome, np.clip(0.3 * outcome + rng.random(60) * 0.7, 0, 1).round(1))
