"""The networks of the field's benchmarks have the numbers of parameters that their papers give, and learn
from what counts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.models import language, resnet

ROWS = re.findall(r"^\| [^|]+ \| `([^`]+)` \| ([\d,]+) \|$", fc.models.__doc__, re.MULTILINE)


def shapes(task):
    return jax.eval_shape(task.init, jax.random.key(0))


@pytest.mark.parametrize(("call", "numbers"), ROWS)
def test_the_number_of_parameters_is_the_published_one(call, numbers):
    task = eval(call, vars(fc.models))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(task))) == int(numbers.replace(",", ""))


def test_all_of_them_are_there():
    assert [int(numbers.replace(",", "")) for _, numbers in ROWS] == [
        209_662, 199_210, 1_206_590, 1_626_442, 11_173_962, 820_522, 4_050_748, 1_962_912, 3_009,
    ]  # fmt: skip


def test_padding_of_a_sequence_counts_nowhere_and_a_place_sees_none_after_it():
    """One small transformer and no compiled program: its loss is that of NumPy on the tokens that count."""
    module = language.Transformer(7, 4, 1, 2, 8, 0.5)
    task = language._next_token(module, 7, 5)
    x, y = jnp.array([[1, 2, 3, 4, 5], [3, 1, 0, 0, 0]]), jnp.array([[2, 3, 4, 5, 6], [1, 2, 0, 0, 0]])

    @jax.jit
    def both(params, x):
        batch = fc.Batch({"x": x, "y": y}, jnp.ones(2))
        return task.predict(params, batch), task.metrics(params, batch)

    params = task.init(jax.random.key(0))
    outputs, found = both(params, x)
    logits = np.asarray(outputs, np.float64)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = -np.take_along_axis(log, np.asarray(y)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found["loss"], [wanted[0].mean(), wanted[1, :2].mean()], rtol=1e-5)
    hits = logits.argmax(-1) == np.asarray(y)
    np.testing.assert_allclose(found["accuracy"], [hits[0].mean(), hits[1, :2].mean()])
    other = np.asarray(both(params, x.at[:, 3:].set(6))[0])
    np.testing.assert_allclose(other[:, :3], logits[:, :3], atol=1e-5)
    assert np.abs(other[:, 3:] - logits[:, 3:]).max() > 1e-2


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"groups must divide 64.*got 3"):
        resnet.resnet18(groups=3)
    with pytest.raises(ValueError, match="multiple of heads, got width=96 and heads=7"):
        fc.models.transformer(heads=7)
