"""Pictures of a site become a field of the agreed shape; what cannot be used is counted by reason; of DICOM
no other header is read."""

import sys

import numpy as np
import pytest

from fedjax_core.cli import main
from fedjax_core.intake import read
from fedjax_core.intake.readiness import readiness

Image = pytest.importorskip("PIL.Image", reason="the extra images is not installed")

SCHEMA = """
name = "xray"
outcome = "finding"
person = "patient"
max_bad = 0.7
[fields.x]
kind = "image"
shape = [4, 6]
{more}
[fields.patient]
kind = "text"
[fields.finding]
categories = ["normal", "pneumonia"]
"""
LABELS = """nr,picture,finding
1,a.png,normal
1,deep/b.jpg,pneumonia
2,wide.png,normal
3,broken.png,normal
4,gone.png,pneumonia
5,,normal
6,sixteen.png,pneumonia
"""
MAPPING = """
schema = "schema.toml"
source = "labels.csv"
[fields.x]
column = "picture"
{more}
[fields.patient]
column = "nr"
"""


def write(folder, schema="", mapping="", labels=LABELS):
    (folder / "schema.toml").write_text(SCHEMA.format(more=schema))
    (folder / "mapping.toml").write_text(MAPPING.format(more=mapping))
    (folder / "labels.csv").write_text(labels)


@pytest.fixture
def site(tmp_path):
    write(tmp_path)
    (tmp_path / "deep").mkdir()
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 6), 51, np.uint8)).save(tmp_path / "deep" / "b.jpg")
    # twice the size each way
    Image.fromarray(np.tile(np.array([[0], [255]], np.uint8), (4, 12))).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    Image.fromarray(np.full((4, 6), 13107, np.uint16)).save(tmp_path / "sixteen.png")
    return tmp_path


def test_a_table_names_pictures_and_those_that_cannot_be_used_are_counted_by_reason(site):
    found = read(site / "mapping.toml")
    assert found.columns["x"].dtype == np.float32 and found.columns["x"].shape == (3, 4, 6)
    np.testing.assert_allclose(found.columns["x"][0], np.arange(24).reshape(4, 6) * 10 / 255, rtol=1e-6)
    np.testing.assert_allclose(found.columns["x"][1:], 0.2, atol=1e-6)  # 51 of 255, and 13107 of 65535
    assert dict(found.reasons) == {
        "'x' is not of 4 x 6 pixels": 1, "'x' is no picture that can be read": 1, "'x' is a file that is not there": 1, "'x' is missing": 1,
    }  # fmt: skip
    assert set(found.strange["x"]) == {"wide.png", "broken.png", "gone.png"}
    assert readiness(found).people == 2  # of three rows


def test_pictures_are_made_as_large_as_agreed_where_the_mapping_says_so(site):
    write(site, mapping="resize = true")
    x = read(site / "mapping.toml").columns["x"]
    assert len(x) == 4 and x[2, 1:-1].min() > 0 and x[2, 1:-1].max() < 1  # rows of 0 and 1 are averaged
    np.testing.assert_allclose(x[2].mean(), 0.5, atol=0.02)


def test_colours_have_an_axis_of_their_own(site):
    write(site, labels="nr,picture,finding\n1,red.png,normal\n")
    (site / "schema.toml").write_text(SCHEMA.format(more="").replace("[4, 6]", "[4, 6, 3]"))
    Image.new("RGB", (6, 4), (255, 0, 51)).save(site / "red.png")
    np.testing.assert_allclose(read(site / "mapping.toml").columns["x"][0, 1, 2], [1, 0, 0.2], rtol=1e-6)


def test_each_class_may_have_a_folder_and_the_command_names_the_broken_file(site, capsys):
    for i, name in enumerate(("sane", "ill")):
        (site / "scans" / name).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.full((4, 6), 50 * i + k, np.uint8)).save(site / "scans" / name / f"{k}.png")
    (site / "scans" / "ill" / "2.png").write_bytes(b"nothing")
    (site / "mapping.toml").write_text(
        'schema = "schema.toml"\nsource = "scans"\n[fields.x]\ncolumn = "file"\n[fields.patient]\ncolumn = "file"\n'
        '[fields.finding]\ncolumn = "folder"\ncodes = { sane = "normal", ill = "pneumonia" }\n'
    )
    assert main(["data", "check", str(site / "mapping.toml")]) == 1
    said = capsys.readouterr().out
    assert "rows out  4, of 4 people" in said and "outcome   normal: 2, pneumonia: 2" in said
    assert "TO DO  'x' has values that are no pictures that can be used: 'ill/2.png' (1)" in said
    (site / "scans" / "ill" / "2.png").unlink()
    assert main(["data", "check", str(site / "mapping.toml")]) == 0
    assert "pictures of 4 x 6" in capsys.readouterr().out
    clients = read(site / "mapping.toml").clients
    assert clients.columns["x"].shape == (4, 4, 6) and clients.columns["finding"].tolist() == [1, 1, 0, 0]


def test_pillow_is_said_how_to_get(site, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"Pillow is needed: pip install 'fedjax-core\[images\]'"):
        read(site / "mapping.toml")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ('[fields.y]\nkind = "image"', "goes with shape"),
        ("[fields.y]\nshape = [4, 4]", "goes with shape"),
        ('[fields.y]\nkind = "image"\nshape = [4, 4, 2]', "1 or 3 colours"),
        ('[fields.y]\nkind = "image"\nshape = [4, 4]\nrange = [1, 1]', "become 0 and 1"),
    ],
)
def test_what_is_wrong_about_pictures_in_a_schema_is_named(site, schema, said):
    (site / "schema.toml").write_text(f"{SCHEMA.format(more='')}\n{schema}\n")
    with pytest.raises(ValueError, match=said):
        read(site / "mapping.toml")


@pytest.fixture
def scans(site):
    """Two persons' scans, one of them the other way round in light, and files that cannot be used."""
    pydicom = pytest.importorskip("pydicom", reason="the extra images is not installed")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    (site / "scans").mkdir()

    def scan(name, patient, values, **more):
        found = pydicom.Dataset()
        found.file_meta = FileMetaDataset()
        found.file_meta.TransferSyntaxUID, found.file_meta.MediaStorageSOPClassUID = (
            ExplicitVRLittleEndian,
            "1.2.840.10008.5.1.4.1.1.2",
        )
        found.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        found.PatientID, found.PatientName, found.PatientBirthDate, found.Modality = (
            patient,
            "CANARY^Name",
            "19010101",
            "CT",
        )
        found.Rows, found.Columns = values.shape
        found.SamplesPerPixel, found.PhotometricInterpretation, found.PixelRepresentation = (
            1,
            "MONOCHROME2",
            0,
        )
        found.BitsAllocated, found.BitsStored, found.HighBit = 16, 12, 11
        found.RescaleIntercept, found.RescaleSlope, found.PixelData = -1000, 2, values.astype("<u2").tobytes()
        for key, value in more.items():
            setattr(found, key, value)
        found.save_as(site / "scans" / name, enforce_file_format=True)

    values = np.arange(24).reshape(4, 6) * 50
    scan("1.dcm", "p1", values, StudyDescription="CANARY study")
    scan("IM2", "p2", values, PhotometricInterpretation="MONOCHROME1")
    scan("3.dcm", "p3", values, BurnedInAnnotation="YES")
    scan("4.dcm", "p4", values, NumberOfFrames=1, Rows=6, Columns=4)
    (site / "scans" / "5.dcm").write_bytes(b"no DICOM at all")
    (site / "schema.toml").write_text(
        SCHEMA.format(more="range = [-1000, 1000]")
        .replace('outcome = "finding"', "")
        .split("[fields.finding]")[0]
        + '[fields.modality]\ncategories = ["CT", "MR"]\n'
    )
    (site / "mapping.toml").write_text(
        'schema = "schema.toml"\nsource = "scans"\nheaders = ["PatientID", "Modality"]\n'
        '[fields.x]\ncolumn = "file"\n[fields.patient]\ncolumn = "PatientID"\n[fields.modality]\ncolumn = "Modality"\n'
    )
    return site


def test_dicom_files_become_pictures_in_their_own_unit_and_only_the_headers_that_are_named_are_read(
    scans, capsys
):
    found = read(scans / "mapping.toml")
    hounsfield = np.arange(24).reshape(4, 6) * 100.0 - 1000
    np.testing.assert_allclose(found.columns["x"][0], np.clip((hounsfield + 1000) / 2000, 0, 1), rtol=1e-6)
    assert found.columns["patient"].tolist() == ["p1", "p2"] and found.columns["modality"].tolist() == [0, 0]
    assert list(found.raw.columns) == ["file", "folder", "PatientID", "Modality"]
    assert "CANARY" not in repr(found) and "1901" not in repr(found.raw)
    assert dict(found.reasons) == {"'x' has text burned into its pixels": 1, "'x' is not of 4 x 6 pixels": 1}
    assert (
        dict(found.raw.left_out) == {"a file that is no DICOM file that can be read": 1}
        and found.raw.records == 5
    )
    main(["data", "check", str(scans / "mapping.toml")])
    said = capsys.readouterr().out
    assert (
        "records   5" in said
        and "5.dcm: a file that is no DICOM file" in said
        and "'3.dcm' (1)" in said
        and "CANARY" not in said
    )


def test_where_low_values_are_light_the_picture_is_turned(scans):
    x = read(scans / "mapping.toml").columns["x"]
    np.testing.assert_allclose(x[0, 0], np.linspace(0, 500, 6) / 2000, rtol=1e-6)
    np.testing.assert_allclose(x[1], 1 - x[0], atol=1e-6)


@pytest.mark.parametrize(
    "header", ("PatientName", "PatientAddress", "ReferringPhysicianName", "RequestAttributesSequence")
)
def test_headers_that_say_who_somebody_is_are_refused(scans, header):
    text = (scans / "mapping.toml").read_text()
    (scans / "mapping.toml").write_text(text.replace('"Modality"]', f'"{header}"]'))
    with pytest.raises(ValueError, match=f"'{header}' may say who somebody is"):
        read(scans / "mapping.toml")
    (scans / "mapping.toml").write_text(text.replace('"Modality"]', '"Modus"]'))
    with pytest.raises(ValueError, match="'Modus' is no keyword of DICOM"):
        read(scans / "mapping.toml")


def test_dicom_needs_the_values_that_become_0_and_1_and_its_package_is_said_how_to_get(scans, monkeypatch):
    text = (scans / "schema.toml").read_text()
    (scans / "schema.toml").write_text(text.replace("range = [-1000, 1000]", ""))
    with pytest.raises(ValueError, match=r"1.dcm is DICOM, whose values have a unit: the schema needs range"):
        read(scans / "mapping.toml")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"pydicom is needed: pip install 'fedjax-core\[images\]'"):
        read(scans / "mapping.toml")


def test_more_files_that_cannot_be_read_than_the_schema_allows_are_an_error(scans):
    for i in range(20):
        (scans / "scans" / f"bad{i}.dcm").write_bytes(b"x")
    with pytest.raises(
        ValueError,
        match=r"21 of 25 records cannot be used, a share of 0.84, .* 0.7 \(max_bad\): a file that is no DICOM",
    ):
        _ = read(scans / "mapping.toml").clients
