"""Models in safetensors files: what other programs read in them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import fedjax_core as fc
from tests.zoo import Dropped, Twin, flax_task


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape) and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize(
    "task",
    [
        fc.models.mlp(features=3, hidden=(4,), classes=2),
        fc.models.linear(features=2),
        flax_task(Dropped()),
        flax_task(Twin),
    ],
    ids=["list", "dict", "linen", "nnx"],
)
def test_what_is_written_is_read(task, tmp_path):
    params, like = task.init(jax.random.key(3)), jax.eval_shape(task.init, jax.random.key(0))
    path = fc.save_model(tmp_path / "new" / "model.safetensors", params)
    equal(fc.load_model(path, like), params)
    equal(fc.load_model(str(path), like=params), params)
    assert [one.name for one in path.parent.iterdir()] == ["model.safetensors"]


def test_another_program_finds_it_under_the_trees_names(tmp_path):
    params = {
        "Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3).T, "bias": jnp.float32(7)},
        "blocks": [{"w": jnp.ones(2, jnp.int8)}, None],
    }
    path = fc.save_model(tmp_path / "model", params, about={"task": "sepsis"})
    found = safetensors.numpy.load_file(path)
    assert {name: (x.dtype.name, x.tolist()) for name, x in found.items()} == {
        "Dense_0.kernel": ("float32", [[0, 3], [1, 4], [2, 5]]),
        "Dense_0.bias": ("float32", 7.0),
        "blocks.0.w": ("int8", [1, 1]),
    }
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"task": "sepsis"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "bool", "uint32", "complex64"])
def test_every_dtype_comes_back(dtype, tmp_path):
    params = jnp.asarray(np.array([0, 1, 1]), dtype)
    equal(fc.load_model(fc.save_model(tmp_path / "model", params), like=params), params)


def test_a_file_that_is_there_is_replaced_whole(tmp_path, monkeypatch):
    path = fc.save_model(tmp_path / "model", jnp.zeros(3))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            fc.save_model(path, jnp.ones(3))
    equal(fc.load_model(path, like=jnp.zeros(3)), jnp.zeros(3))
    equal(fc.load_model(fc.save_model(path, jnp.ones(3)), like=jnp.zeros(3)), jnp.ones(3))


@pytest.mark.parametrize(
    ("like", "said"),
    [
        (
            {"w": jnp.zeros((2, 4)), "b": jnp.zeros(3)},
            r"w is float32\[2, 3\] there and float32\[2, 4\] in like=",
        ),
        (
            {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3, jnp.int32)},
            r"b is float32\[3\] there and int32\[3\] in like=",
        ),
        ({"w": jnp.zeros((2, 3))}, r"b is float32\[3\] there and absent in like="),
        (
            {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3), "c": jnp.zeros(1)},
            r"c is absent there and float32\[1\] in like=",
        ),
        (
            [jnp.zeros(1)] * 6,
            r"2 is absent there and float32\[1\] in like=; and 3 more\. Give like= of the task",
        ),
    ],
)
def test_another_model_is_refused_by_leaf(like, said, tmp_path):
    path = fc.save_model(tmp_path / "model", {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
    with pytest.raises(ValueError, match=said):
        fc.load_model(path, like)


def test_what_is_no_such_file_is_refused(tmp_path):
    (tmp_path / "other").write_text("hello")
    with pytest.raises(ValueError, match=r"other is not a file in the safetensors format"):
        fc.load_model(tmp_path / "other", jnp.zeros(3))
    with pytest.raises(FileNotFoundError):
        fc.load_model(tmp_path / "none", jnp.zeros(3))


def test_two_leaves_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"two leaves of the model would be 'a\.b' in the file"):
        fc.save_model(tmp_path / "model", {"a": {"b": jnp.zeros(1)}, "a.b": jnp.zeros(1)})
