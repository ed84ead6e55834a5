"""FedJAX's convolutional network for EMNIST, as an ordinary Flax module.

    conv 3x3x32, relu, conv 3x3x64, relu, max pool 2x2, [dropout], dense 128, relu, [dropout], dense

Ro, Suresh, Wu, "FedJAX: Federated learning simulation with JAX", 2021; it drops 0.25 of the inputs of the
first dense layer and 0.5 of those of the second.

>>> import jax
>>> task = cnn(shape=(28, 28, 1), classes=62)
>>> sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))
1206590
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_core.models.base import accuracy, cross_entropy, images, labels_below
from fedjax_core.models.from_flax import from_flax
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch


class CNN(nn.Module):
    """The module of `cnn`: images [B, height, width, channels] to logits [B, classes]."""

    classes: int
    dropout: tuple[float, float] = (0.0, 0.0)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits; inputs are dropped only where `train`."""
        for channels in (32, 64):
            x = nn.relu(nn.Conv(channels, (3, 3), padding="VALID")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2)).reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout[0], deterministic=not train)(x)
        x = nn.relu(nn.Dense(128)(x))
        x = nn.Dropout(self.dropout[1], deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


def cnn(
    shape: tuple[int, int, int] = (28, 28, 1), classes: int = 62, *, dropout: tuple[float, float] = (0.0, 0.0)
) -> Task:
    """The network on columns `x`, any shape of height * width * channels values an example, and `y`; uint8 is
    scaled to [0, 1]."""

    def inputs(batch: Batch) -> Array:
        x = batch["x"]
        return images(x).astype(jnp.float32).reshape(x.shape[0], *shape)

    example = {
        "x": jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        "y": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    task = from_flax(
        CNN(classes, dropout),
        example,
        loss=lambda logits, batch: cross_entropy(logits, batch["y"]),
        metrics=lambda logits, batch: {"accuracy": accuracy(logits, batch["y"])},
        inputs=inputs,
    )
    return task._replace(check=labels_below(classes), classes=classes)
