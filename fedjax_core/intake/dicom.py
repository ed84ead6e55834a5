"""DICOM files: the headers that a mapping names, and pixels; no other header is read.

A mapping's `headers` lists everything that is read of a file beside its pixels. Persons' names (value
representation PN), addresses, telephone numbers and sequences are refused there. Pixels become numbers by the
file's own RescaleSlope and RescaleIntercept, or its lookup table. A file that declares text burned into its
pixels is left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_NEEDED = (  # for pixels, and for nothing else
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleIntercept", "RescaleSlope",
    "ModalityLUTSequence", "BurnedInAnnotation", "PixelData",
)  # fmt: skip
_IDENTIFY = ("Address", "Telephone", "Telecom", "OtherPatient", "EthnicGroup", "MilitaryRank", "Comments")


class Unreadable(Exception):
    """A file that cannot be used, for a reason that is counted."""


def package() -> Any:
    """pydicom; raises ImportError, saying how to get it, where it is not installed."""
    try:
        import pydicom
    except ImportError:
        raise ImportError("to read DICOM, pydicom is needed: pip install 'fedjax-core[images]'") from None
    return pydicom


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first 132 bytes; its name may have no ending."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def check_headers(names: Sequence[str]) -> None:
    """Raises ValueError, naming the header, where DICOM does not know it or it says who somebody is."""
    package()
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    for name in names:
        tag = tag_for_keyword(name)
        if tag is None:
            raise ValueError(
                f"headers: {name!r} is no keyword of DICOM, such as 'PatientID', 'PatientAge' or 'Modality'"
            )
        if dictionary_VR(tag) in ("PN", "SQ") or any(word in name for word in _IDENTIFY):
            raise ValueError(
                f"headers: {name!r} may say who somebody is, and is not read; name persons by 'PatientID'"
            )


def headers(path: Path, names: Sequence[str]) -> dict[str, str]:
    """{name: the header's value as text, "" where it is missing}; nothing else of the file is read."""
    dataset = _read(path, names, stop_before_pixels=True)
    return {name: _text(dataset.get(name)) for name in names}


def pixels(path: Path) -> np.ndarray:
    """[rows, columns] float32 in the file's own unit, or [rows, columns, 3] of colours from 0 to 255; raises
    Unreadable."""
    package()
    from pydicom.pixels.processing import apply_modality_lut

    dataset = _read(path, _NEEDED)
    if dataset.get("BurnedInAnnotation") == "YES":
        raise Unreadable("has text burned into its pixels")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise Unreadable("has several frames, and a row has one picture")
    try:
        raw = dataset.pixel_array
    except RuntimeError:
        raise Unreadable(
            "is compressed in a way that needs a decoder: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from None
    except (AttributeError, ValueError, TypeError, NotImplementedError, OSError):
        raise Unreadable("is no picture that can be read") from None
    if raw.ndim == 3:
        return np.asarray(raw, np.float32)
    values = np.asarray(apply_modality_lut(raw, dataset), np.float32)
    return -values if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def _read(path: Path, names: Sequence[str], **more: Any) -> Any:
    pydicom = package()
    try:
        return pydicom.dcmread(path, specific_tags=list(names), **more)
    except (pydicom.errors.InvalidDicomError, EOFError, OSError, ValueError, AttributeError, KeyError):
        raise Unreadable("is no DICOM file that can be read") from None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return (
        str(value)
        if isinstance(value, str) or not hasattr(value, "__iter__")
        else "\\".join(str(one) for one in value)
    )
