"""ResNet-18 with GroupNorm, as an ordinary Flax module: the residual network for small images that keeps no
running statistics.

    conv 3x3x64, norm, relu, then two blocks each of 64, 128, 256, 512 channels (all but the first halve the image), mean, dense
    block: relu(x + norm(conv 3x3(relu(norm(conv 3x3(x))))))

BatchNorm's averages describe no client where clients' data differ; GroupNorm has none. He et al., "Deep
Residual Learning for Image Recognition", CVPR 2016, in its form for 32x32 images; Hsieh et al., "The Non-IID
Data Quagmire of Decentralized Machine Learning", ICML 2020, for GroupNorm in its place.

>>> import jax
>>> task = resnet18(classes=100)
>>> sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))
11220132
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_core.models.base import accuracy, cross_entropy, images, labels_below
from fedjax_core.models.from_flax import from_flax
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch


class Block(nn.Module):
    """A residual block: two convolutions, with the input added to their result."""

    channels: int
    stride: int
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images [B, h, w, c] to [B, h / stride, w / stride, channels]."""
        conv, norm = (
            partial(nn.Conv, self.channels, use_bias=False),
            partial(nn.GroupNorm, num_groups=self.groups),
        )
        y = nn.relu(norm()(conv((3, 3), strides=self.stride)(x)))
        y = norm()(conv((3, 3))(y))
        if x.shape != y.shape:
            x = norm()(conv((1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """The module of `resnet18`: images [B, height, width, channels] to logits [B, classes]."""

    classes: int
    groups: int = 32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits."""
        x = nn.Conv(64, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.GroupNorm(num_groups=self.groups)(x))
        for channels, stride in (
            (64, 1),
            (64, 1),
            (128, 2),
            (128, 1),
            (256, 2),
            (256, 1),
            (512, 2),
            (512, 1),
        ):
            x = Block(channels, stride, self.groups)(x)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


def resnet18(shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, *, groups: int = 32) -> Task:
    """The network on columns `x`, any shape of height * width * channels values an example, and `y`; uint8 is
    scaled to [0, 1].

    `groups` (1 to 64, a divisor of 64) are those of GroupNorm. Raises ValueError for any other.
    """
    if groups < 1 or 64 % groups:
        raise ValueError(f"groups must divide 64, the channels of the first layers, got {groups}")

    def inputs(batch: Batch) -> Array:
        x = batch["x"]
        return images(x).astype(jnp.float32).reshape(x.shape[0], *shape)

    example = {
        "x": jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        "y": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    task = from_flax(
        ResNet18(classes, groups),
        example,
        loss=lambda logits, batch: cross_entropy(logits, batch["y"]),
        metrics=lambda logits, batch: {"accuracy": accuracy(logits, batch["y"])},
        inputs=inputs,
    )
    return task._replace(check=labels_below(classes), classes=classes)
