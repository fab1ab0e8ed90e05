from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian

from medqua.core.errors import UnreadableImageError
from medqua.core.vision.image import Decoder
from medqua.core.vision.limits import Limits
from medqua.core.vision.stored import read_stored
from medqua.core.vision.tags import tag_table


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


def made(cells: np.ndarray, **attributes: object) -> bytes:
    """A radiograph of frames `[F, H, W]` with some attributes."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = "CR", "MONOCHROME2", 1
    ds.NumberOfFrames, ds.Rows, ds.Columns = cells.shape
    ds.BitsAllocated = ds.BitsStored = 8 * cells.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(cells.dtype.kind == "i")
    ds.PixelData = cells.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.file_meta = Dataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = BytesIO()
    ds.save_as(stream, implicit_vr=False, little_endian=True)
    meta = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\x00"
    return bytes(128) + b"DICM" + meta + stream.getvalue()


def described(**attributes: object) -> dict:
    cells = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
    return read_stored(made(cells, **attributes), Limits())[1]


def test_values_come_as_stored_whatever_the_window(shared_data: Path, decoder: Decoder):
    for name in ("cxr_RG1_J2KI", "misc_CT_small", "misc_emri_small_jpeg_ls_lossless"):
        path = shared_data / "dicom" / f"{name}.dcm"
        cells, told = decoder.read_stored(path)
        expected = pixel_array(dcmread(path))
        assert np.array_equal(cells, expected.reshape(cells.shape))
        assert cells.shape == (told["frames"], told["rows"], told["columns"])
        assert told["signed"] == (cells.dtype == np.int16)


def test_every_hostile_file_ends_in_values_or_an_error(shared_data: Path, decoder: Decoder):
    files = sorted(p for p in (shared_data / "malformed").rglob("*") if p.is_file())[::4]
    read, refused = 0, []
    for path in files:
        try:
            cells, told = decoder.read_stored(path)
        except UnreadableImageError as error:
            refused.append(str(error))
        else:
            read += 1
            assert len(told["tags"]) <= 2000
            assert cells.size
    assert 0 < read < len(files)
    assert all(len(reason) < 250 for reason in refused)


def test_a_wide_cell_is_taken_where_its_values_fit_and_refused_where_not():
    cells = np.arange(12, dtype=np.uint32).reshape(1, 3, 4)
    values, _ = read_stored(made(cells), Limits())
    assert np.array_equal(values, cells)
    with pytest.raises(UnreadableImageError, match="16 bits"):
        read_stored(made(cells + 70_000), Limits())


def test_frames_over_the_limit_are_refused_before_they_are_decoded():
    cells = np.zeros((50, 3, 4), np.uint16)
    with pytest.raises(UnreadableImageError, match="50 frames"):
        read_stored(made(cells), Limits(data_bytes=1000))


@pytest.mark.parametrize(
    ("attributes", "source", "spacing"),
    [
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [1, 1]}, "PixelSpacing", (0.2, 0.1)),
        ({"ImagerPixelSpacing": [0.143, 0.143]}, "ImagerPixelSpacing", (0.143, 0.143)),
        ({"NominalScannedPixelSpacing": [0.1, 0.1]}, "NominalScannedPixelSpacing", (0.1, 0.1)),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2]}, "ImagerPixelSpacing",
         (0.2, 0.2)),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2],
          "PixelSpacingCalibrationType": "FIDUCIAL"}, "PixelSpacing", (0.2, 0.2)),
        ({"ImagerPixelSpacing": [0.2, 0.1], "EstimatedRadiographicMagnificationFactor": 1.25},
         "ImagerPixelSpacing", (0.16, 0.08)),
        ({"PixelSpacing": [0.2, 0.1], "EstimatedRadiographicMagnificationFactor": 1.25},
         "PixelSpacing", (0.2, 0.1)),
        ({"PixelSpacing": [0, 0]}, None, None),
        ({}, None, None),
    ],
)  # fmt: skip
def test_spacing_says_where_it_is_from(attributes, source, spacing):
    told = described(**attributes)["spacing"]
    if source is None:
        assert told is None
    else:
        assert told["source"] == source
        assert (told["row"], told["column"]) == pytest.approx(spacing)


def test_orientation_is_the_patients_or_follows_from_the_cosines():
    assert described(PatientOrientation=["L", "F"])["orientation"] == ["L", "F"]
    axial = described(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    assert axial["orientation"] == ["L", "P"]
    coronal = described(ImageOrientationPatient=[-1, 0, 0, 0, 0, -1])
    assert coronal["orientation"] == ["R", "F"]
    assert described(PatientOrientation=["X", "F"])["orientation"] is None


def test_all_windows_of_a_file_are_told_in_order():
    told = described(
        WindowCenter=[40, -600], WindowWidth=[400, 1500],
        WindowCenterWidthExplanation=["SOFT", "LUNG"],
    )["displays"][0]["windows"]  # fmt: skip
    assert [(w["center"], w["width"], w["explanation"]) for w in told] == [
        (40.0, 400.0, "SOFT"),
        (-600.0, 1500.0, "LUNG"),
    ]


def test_padding_is_left_out_of_the_range():
    cells = np.array([[[0, 0, 5], [9, 0, 7]]], np.uint16)
    assert read_stored(made(cells, PixelPaddingValue=0), Limits())[1]["range"] == [5, 9]


def test_jpg_and_png_say_nothing_but_their_size():
    stream = BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4)).save(stream, "PNG")
    cells, told = read_stored(stream.getvalue(), Limits())
    assert cells.ravel().tolist() == list(range(12))
    assert (told["spacing"], told["tags"], told["inverted"]) == (None, [], False)


def test_whatever_may_name_a_patient_is_marked():
    told = described(
        PatientName="Doe^Jane", PatientID="4711", PatientBirthDate="19500101", PatientSex="F",
        StudyDate="20240101", InstitutionName="A hospital", AccessionNumber="A1",
        StudyDescription="chest of Jane Doe", BodyPartExamined="CHEST", StudyInstanceUID="1.2.3",
    )  # fmt: skip
    rows = {row["tag"]: row for row in told["tags"]}
    named = ("(0010,0010)", "(0010,0020)", "(0010,0030)", "(0010,0040)", "(0008,0020)")
    named += ("(0008,0080)", "(0008,0050)", "(0008,1030)", "(0020,000D)", "(0008,0018)")
    assert all(rows[tag]["personal"] for tag in named)
    plain = ("(0008,0060)", "(0018,0015)", "(0028,0010)", "(0008,0016)", "(0002,0010)")
    assert not any(rows[tag]["personal"] for tag in plain)
    assert rows["(7FE0,0010)"]["value"] == "24 bytes"
    assert rows["(0010,0010)"]["value"] == "Doe^Jane"


def test_the_table_of_tags_is_bounded():
    ds = Dataset()
    ds.file_meta = Dataset()
    deep = ds
    for _ in range(20):
        item = Dataset()
        item.ImageComments = "x" * 1000
        deep.ContentSequence = [item]
        deep = item
    rows = tag_table(ds)
    assert max(row["level"] for row in rows) == 6
    assert max(len(row["value"]) for row in rows) == 256
    ds.ContentSequence = [Dataset() for _ in range(3000)]
    for item in ds.ContentSequence:
        item.Modality = "CR"
    assert len(tag_table(ds)) == 2000
