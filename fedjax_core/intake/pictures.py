"""Pictures as a field's values: PNG, JPEG or DICOM files that a column of a table names, in the shape that
the study agreed on.

    schema      [fields.x]  kind = "image"  shape = [224, 224]      or [224, 224, 3]: of colours
                range = [-1000, 400]        these values become 0 and 1, and those outside are cut off; without
                                            it, 0 and the largest value of the file's bits; DICOM needs it
    mapping     source = "labels.csv"       with a column of file names, relative to it; or a folder: columns
                                            `file` and `folder`, which is the class where each has its folder
                headers = ["PatientID"]     of DICOM files in a folder: a column each; no other is read (dicom.py)
                [fields.x]  column = "file"  resize = true    else another size makes a row unusable

Values are float32 from 0 to 1; light is 1.
"""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core.intake import dicom
from fedjax_core.intake.dicom import Unreadable
from fedjax_core.intake.raw import LeftOut, Raw

_PICTURES = (".png", ".jpg", ".jpeg", ".dcm")


def listed(folder: Path, headers: Sequence[str] = ()) -> Raw:
    """The pictures in a folder and those below it: columns file, folder, and the named DICOM headers."""
    files = [
        one
        for one in sorted(folder.rglob("*"))
        if one.is_file() and (one.suffix.lower() in _PICTURES or _unnamed(one))
    ]
    if not files:
        raise ValueError(
            f"{folder} has no picture: files that end in {', '.join(_PICTURES)}, or DICOM files whose names have no ending"
        )
    if headers:
        dicom.check_headers(headers)
    left, rows = LeftOut(), []
    for one in files:
        try:
            values = dicom.headers(one, headers).values() if headers else ()
            rows.append([one.relative_to(folder).as_posix(), one.parent.name, *values])
        except Unreadable as error:
            left.add(f"a file that {error}", str(one))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("file", "folder", *headers))}
    return Raw(columns, folder, len(files), left.reasons, tuple(left.where))


def read(
    names: Sequence[str], folder: Path, shape: tuple[int, ...], settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """([rows, *shape] float32, NaN where there is no picture; [rows] why not, "" where there is one or none
    is named).

    `settings` has the field's range, and the mapping's factor, offset and resize.
    """
    images, why = np.zeros((len(names), *shape), np.float32), np.full(len(names), "", dtype=object)
    for i, name in enumerate(names):
        try:
            if not name:
                images[i] = np.nan
                continue
            images[i] = _picture(folder / name, shape, settings)
        except Unreadable as error:
            images[i], why[i] = np.nan, str(error)
    return images, why


def _picture(path: Path, shape: tuple[int, ...], settings: Any) -> np.ndarray:
    if not path.is_file():
        raise Unreadable("is a file that is not there")
    if path.suffix.lower() == ".dcm" or dicom.is_dicom(path):
        x, most = dicom.pixels(path), 255.0
        if x.ndim == 2 and not settings.range:
            raise ValueError(
                f"{path} is DICOM, whose values have a unit: the schema needs range = [least, most], which become 0 and 1"
            )
    else:
        x, most = _of_pillow(path, len(shape) == 3 and shape[2] == 3)
    colours = shape[2] if len(shape) == 3 else 1
    x = x[..., None] if x.ndim == 2 else x
    if x.shape[2] != colours:
        raise Unreadable(f"has {x.shape[2]} colours, and the field {colours}")
    if x.shape[:2] != shape[:2]:
        if not settings.resize:
            raise Unreadable(f"is not of {shape[0]} x {shape[1]} pixels")
        x = _resized(x, shape[0], shape[1])
    low, high = settings.range or (0.0, most)
    return np.clip((x * settings.factor + settings.offset - low) / (high - low), 0, 1).reshape(shape)


def _of_pillow(path: Path, colours: bool) -> tuple[np.ndarray, float]:
    """(the picture, [rows, columns] or with colours; the largest value of its bits)."""
    pillow, operations = _package()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path) as opened:
                opened.load()
                image = operations.exif_transpose(opened)
    except (
        OSError,
        EOFError,
        ValueError,
        SyntaxError,
        struct.error,
        pillow.DecompressionBombError,
        pillow.DecompressionBombWarning,
    ):
        raise Unreadable("is no picture that can be read") from None
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32), 65535.0
    if image.mode in ("I", "F"):
        raise Unreadable("has 32 bits a pixel, of which nobody knows what light is")
    return np.asarray(image.convert("RGB" if colours else "L"), np.float32), 255.0


def _resized(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[rows, columns, colours], each colour by itself, by linear interpolation over the pixels that a new one
    covers."""
    pillow, _ = _package()
    one = [
        np.asarray(
            pillow.fromarray(np.ascontiguousarray(x[..., c])).resize(
                (columns, rows), pillow.Resampling.BILINEAR
            )
        )
        for c in range(x.shape[2])
    ]
    return np.stack(one, -1)


def _package() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError(
            "to read PNG and JPEG, Pillow is needed: pip install 'fedjax-core[images]'"
        ) from None
    return Image, ImageOps


def _unnamed(path: Path) -> bool:
    return not path.suffix and dicom.is_dicom(path)
