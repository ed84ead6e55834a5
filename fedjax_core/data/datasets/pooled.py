"""Data sets that name no clients: Fashion-MNIST, CIFAR-10 and CIFAR-100, as one client, to be dealt out by
`fc.partition`.

    data = fashion_mnist()
    parts = fc.partition.dirichlet(data.train.columns["y"], clients=100, alpha=0.1)
    clients = fc.Clients.from_parts(data.train.columns, parts)

Images are uint8, which models bring to [0, 1]. Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset
for Benchmarking Machine Learning Algorithms", 2017 (MIT licence); Krizhevsky, "Learning Multiple Layers of
Features from Tiny Images", 2009."""

import gzip
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.data.datasets.base import DataError, Remote, find

_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION = [
    Remote(name, _ZALANDO + name, sha256, size)
    for name, sha256, size in (
        (
            "train-images-idx3-ubyte.gz",
            "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            26421856,
        ),
        (
            "train-labels-idx1-ubyte.gz",
            "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            29491,
        ),
        (
            "t10k-images-idx3-ubyte.gz",
            "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            4422079,
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
            5125,
        ),
    )
]
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
CIFAR10 = Remote(
    "cifar-10-binary.tar.gz",
    f"{_TORONTO}cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    170052171,
)
CIFAR100 = Remote(
    "cifar-100-binary.tar.gz",
    f"{_TORONTO}cifar-100-binary.tar.gz",
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    168513733,
)


class Pooled(NamedTuple):
    """Training and test examples, one client each: columns x uint8 [n, height, width, channels] and y int32
    [n]."""

    train: Clients
    test: Clients


def fashion_mnist() -> Pooled:
    """60,000 training and 10,000 test images of clothes, 28x28x1, in ten classes."""
    paths = find("fashion_mnist", FASHION)
    return Pooled(
        *(
            _one(read_idx(paths[x.name])[..., None], read_idx(paths[y.name]))
            for x, y in (FASHION[:2], FASHION[2:])
        )
    )


def cifar10() -> Pooled:
    """50,000 training and 10,000 test photographs, 32x32x3, in ten classes."""
    path = find("cifar10", [CIFAR10])[CIFAR10.name]
    return Pooled(_records(path, "data_batch_", labels=1), _records(path, "test_batch", labels=1))


def cifar100() -> Pooled:
    """50,000 training and 10,000 test photographs, 32x32x3, in 100 classes."""
    path = find("cifar100", [CIFAR100])[CIFAR100.name]
    return Pooled(_records(path, "train", labels=2), _records(path, "test", labels=2))


def read_idx(path: Path) -> np.ndarray:
    """The array of a gzipped IDX file of bytes; raises DataError for a file of another kind."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is no IDX file of bytes: it begins with {content[:4].hex()}")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4).astype(int)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def _records(path: Path, part: str, labels: int) -> Clients:
    """The records of the archive's files whose names begin with `part`: label bytes, the last of which
    counts, then colour planes."""
    with tarfile.open(path) as archive:
        names = sorted(
            name for name in archive.getnames() if Path(name).name.startswith(part) and name.endswith(".bin")
        )
        contents = [file.read() for name in names if (file := archive.extractfile(name)) is not None]
    if not contents:
        raise DataError(f"{path} has no file {part}*.bin in it")
    rows = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, labels + 3 * 32 * 32)
    return _one(rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, labels - 1])


def _one(x: np.ndarray, y: np.ndarray) -> Clients:
    columns = {"x": np.ascontiguousarray(x), "y": y.astype(np.int32)}
    return Clients.from_arrays(columns, [0, len(y)], ["pooled"])
