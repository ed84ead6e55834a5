"""`to_nnx`: what was trained is what the module computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fedjax_core as fc
from tests.zoo import Twin, flax_task


@pytest.mark.parametrize("made", [False, True])
def test_the_module_predicts_as_the_task_does(made):
    module = Twin(nnx.Rngs(5)) if made else Twin
    task = flax_task(module)
    params = jax.tree.map(lambda x: x + 0.5, task.init(jax.random.key(3)))
    batch = fc.Batch(
        {"x": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}, jnp.ones(4)
    )
    model = fc.models.to_nnx(module, params)
    model.eval()
    np.testing.assert_allclose(model(batch["x"]), task.predict(params, batch), rtol=1e-6)
    assert type(model) is Twin
    if made:  # and it is as it was
        assert not np.array_equal(module.inner.kernel[...], params["inner.kernel"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda params: {**params, "inner.bias": jnp.zeros(5)},
            r"inner\.bias has the shape \(4,\) in the module and \(5,\) in what was given",
        ),
        (
            lambda params: {"inner.bias": params["inner.bias"]},
            r"has the shape \(3, 4\) in the module and absent in what was given",
        ),
        (
            lambda params: {**params, "more": jnp.zeros(1)},
            r"more has the shape absent in the module and \(1,\) in what was given",
        ),
    ],
)
def test_other_parameters_are_refused_by_name(change, said):
    params = flax_task(Twin).init(jax.random.key(0))
    with pytest.raises(ValueError, match=said):
        fc.models.to_nnx(Twin, change(params))
