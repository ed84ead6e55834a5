"""Pictures that the studies deal to clients: Fashion-MNIST, and the JPEG copies of CIFAR-10, with a model for
each.

`fashion()` reads fashion_mnist/*.gz and `cifar10()` reads cifar10_jpg/cifar10_jpg_20k.zip (all 10,000 test
and 10,000 of the 50,000 training images, as JPEG, so that published accuracies are above these), both in
`$FEDJAX_CORE_DATA`.
"""

import io
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

import fedjax_core as fc
from fedjax_core.data.datasets import fashion_mnist
from fedjax_core.data.datasets.pooled import Pooled
from fedjax_core.models.base import accuracy, cross_entropy, images
from fedjax_core.types import Array, Batch


def fashion() -> Pooled:
    """60,000 training and 10,000 test images of clothes, 28x28x1, in ten classes."""
    return fashion_mnist()


def fashion_mlp(hidden: tuple[int, ...] = (64,)) -> fc.Task:
    """A perceptron on the 784 pixels."""
    return fc.models.mlp(features=784, hidden=hidden, classes=10)


def cifar10() -> Pooled:
    """10,000 training and 10,000 test photographs, 32x32x3, in ten classes."""
    path = Path(os.environ["FEDJAX_CORE_DATA"]) / "cifar10_jpg" / "cifar10_jpg_20k.zip"
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        contents = {name: archive.read(name) for name in names}
    classes = sorted({name.split("/")[1] for name in names})

    def split(part: str) -> fc.Clients:
        here = [name for name in names if name.startswith(f"{part}/")]
        x = np.stack([np.asarray(Image.open(io.BytesIO(contents[name])).convert("RGB")) for name in here])
        y = np.array([classes.index(name.split("/")[1]) for name in here], np.int32)
        return fc.Clients.from_arrays({"x": x, "y": y}, [0, len(y)], ["pooled"])

    return Pooled(split("train"), split("test"))


class SmallCNN(nn.Module):
    """Two convolutions 3x3 of stride 2, a dense layer and the logits."""

    channels: tuple[int, ...] = (8, 16)
    width: int = 64

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images [B, height, width, channels] to logits [B, 10]."""
        for channels in self.channels:
            x = nn.relu(nn.Conv(channels, (3, 3), strides=(2, 2))(x))
        x = nn.relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def cifar_cnn() -> fc.Task:
    """`SmallCNN` on columns `x` uint8 [n, 32, 32, 3] and `y`: 67,642 numbers."""

    def inputs(batch: Batch) -> Array:
        return images(batch["x"]).reshape(batch["x"].shape[0], 32, 32, 3)

    example = {
        "x": jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
        "y": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    return fc.models.from_flax(
        SmallCNN(),
        example,
        loss=lambda logits, batch: cross_entropy(logits, batch["y"]),
        metrics=lambda logits, batch: {"accuracy": accuracy(logits, batch["y"])},
        inputs=inputs,
    )
