"""The stages that add noise hold the contract of stages."""

import jax
import jax.numpy as jnp
import pytest

from tests.contracts import check_stage
from tests.zoo import PRIVATE

LAYERS = [{"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)}, {"b": jax.ShapeDtypeStruct((4,), jnp.float32)}]


@pytest.mark.parametrize("name", PRIVATE)
def test_a_stage_by_itself(name):
    check_stage(PRIVATE[name](), shapes=LAYERS)
