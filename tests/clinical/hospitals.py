"""Made-up hospitals: patients with an outcome and the risk that a model gave them."""

import numpy as np

from fedjax_core.clinical.performance import Predictions


def hospital(n, seed=0):
    rng = np.random.default_rng(seed)
    outcome = (rng.random(n) < 0.4).astype(int)
    return Predictions(outcome, np.clip(0.3 * outcome + rng.random(n) * 0.7, 0, 1))


NOBODY = Predictions(np.zeros(0, int), np.zeros(0))
