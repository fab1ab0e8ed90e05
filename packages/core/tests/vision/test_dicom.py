import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import get_frame

from medqua.core.errors import OutOfScopeError, UnreadableImageError
from medqua.core.vision.image import Decoded, Decoder, ImageSpec
from medqua.core.vision.limits import Limits
from medqua.core.vision.recipe import encode_jpeg, jpeg_round_trip, mimic_cxr_jpg

SHOWN = ImageSpec(profile="display", size=None, scope="any")
RECIPE = ImageSpec(size=None)


def read(source: Path | bytes, spec: ImageSpec = RECIPE) -> Decoded:
    return Decoder(trusted=True).read(source, spec)


def radiograph(pixels: np.ndarray, photometric: str = "MONOCHROME2", **attributes) -> FileDataset:
    """A digital radiograph with the given stored values."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds = FileDataset("", Dataset(), preamble=bytes(128), file_meta=meta)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = meta.MediaStorageSOPClassUID, "1.2.3", "DX"
    ds.BodyPartExamined, ds.ViewPosition = "CHEST", "PA"
    ds.PatientName, ds.PatientID = "DOE^JANE", "MRN0042"
    ds.PhotometricInterpretation = photometric
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    if ds.SamplesPerPixel > 1:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def saved(ds: Dataset) -> bytes:
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def gradient(bits: int = 12) -> np.ndarray:
    levels = np.add.outer(np.arange(40) * 60, np.arange(30) * 45)
    return (levels % (1 << bits)).astype(np.uint16)


@pytest.mark.parametrize("profile", ["mimic-cxr-jpg", "display"])
@pytest.mark.parametrize("bits", [10, 12, 14, 15, 16])
def test_twins_of_one_exposure_give_equal_images(profile, bits):
    spec = ImageSpec(profile=profile, size=32)
    pixels = gradient(bits)
    twin = ((1 << bits) - 1 - pixels).astype(np.uint16)
    stored = {"BitsStored": bits, "HighBit": bits - 1}
    one = read(saved(radiograph(pixels, **stored)), spec).image
    two = read(saved(radiograph(twin, "MONOCHROME1", **stored)), spec).image
    assert np.array_equal(one, two) if profile == "mimic-cxr-jpg" else np.allclose(one, two)
    assert one.max() > one.min()


def test_a_file_and_its_jpg_give_equal_images():
    pixels = gradient()
    ds = radiograph(pixels, BitsStored=12, HighBit=11)
    jpg = encode_jpeg(mimic_cxr_jpg(pixels, "MONOCHROME2", bits_stored=12))
    for spec in (RECIPE, ImageSpec(size=20), ImageSpec(size=64, fit="stretch")):
        assert np.array_equal(read(saved(ds), spec).image, read(jpg, spec).image)


def test_overlays_in_the_high_bits_do_not_show():
    pixels = gradient()
    marked = pixels.copy()
    marked[5:9, 5:9] |= 0xF000
    stored = {"BitsStored": 12, "HighBit": 11}
    for spec in (RECIPE, SHOWN):
        clean = read(saved(radiograph(pixels, **stored)), spec).image
        assert np.array_equal(read(saved(radiograph(marked, **stored)), spec).image, clean)


def test_high_bit_need_not_be_the_lowest_possible():
    low = radiograph(gradient(), BitsStored=12, HighBit=11)
    high = radiograph(gradient() << 4, BitsStored=12, HighBit=15)
    assert np.array_equal(read(saved(low)).image, read(saved(high)).image)


def test_signed_pixels_keep_their_order():
    signed = (gradient().astype(np.int32) - 2048).astype(np.int16)
    ours = read(saved(radiograph(signed))).image
    assert np.array_equal(ours, read(saved(radiograph(gradient()))).image)


def test_grey_stored_as_colour_is_grey():
    grey = (gradient() >> 4).astype(np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=2)
    expected = read(saved(radiograph(grey))).image
    assert np.array_equal(read(saved(radiograph(colour, "RGB"))).image, expected)
    planar = radiograph(colour, "RGB", PlanarConfiguration=1)
    planar.PixelData = colour.transpose(2, 0, 1).tobytes()
    assert np.array_equal(read(saved(planar)).image, expected)


def test_real_chest_files_are_read_and_others_refused_for_what_they_are(shared_data: Path):
    dicom = shared_data / "dicom"
    for path in dicom.glob("cxr_*.dcm"):
        decoded = read(path)
        height, width = decoded.image.shape
        middle = decoded.image[height // 3 : height // 2]
        spine = middle[:, int(width * 0.45) : int(width * 0.55)].mean()
        lungs = middle[:, int(width * 0.2) : int(width * 0.35)].mean()
        assert lungs < spine, path.name
    reasons = {"cr_leg": "EXTREMITY", "cr_teeth": "TEETH", "cr_cspine": "CSPINE"}
    for start, reason in reasons.items():
        for path in dicom.glob(f"{start}*"):
            with pytest.raises(OutOfScopeError, match=reason):
                read(path)
    for path in dicom.glob("misc_*"):
        modality = pydicom.dcmread(path, stop_before_pixels=True).get("Modality") or "absent"
        with pytest.raises(OutOfScopeError, match=f"Modality is {modality};"):
            read(path)


@pytest.mark.parametrize(
    ("original", "copies"),
    [
        ("cxr_CR-MONO1-10-chest", ["JPEGLS", "JPEGlossless_SV1", "RLE", "explicitBE"]),
        ("derived_cxr/nih_8bit_explicitLE", ["J2Klossless", "JPEGlossless_SV1", "RLE", "deflated"]),
        ("derived_cxr/rg1_15bit_deflated", ["JPEGLS"]),
    ],
)
def test_lossless_transcodings_equal_their_original(shared_data: Path, original, copies):
    dicom = shared_data / "dicom"
    stem = {"c": "cr_mono1_10bit", "n": "nih_8bit", "r": "rg1_15bit"}[Path(original).name[0]]
    for spec in (ImageSpec(), ImageSpec(profile="display")):
        expected = read(dicom / f"{original}.dcm", spec).image
        for copy in copies:
            ours = read(dicom / "derived_cxr" / f"{stem}_{copy}.dcm", spec).image
            assert np.array_equal(ours, expected), copy


def test_lossy_transcodings_are_near_their_original(shared_data: Path):
    derived = shared_data / "dicom" / "derived_cxr"
    expected = read(derived / "nih_8bit_explicitLE.dcm", SHOWN).image * 255
    near = read(derived / "nih_8bit_JPEGLS_near2.dcm", SHOWN).image
    assert np.abs(near * 255 - expected).max() < 4  # two levels, and the ends may move by two
    lossy = read(derived / "nih_8bit_J2Klossy.dcm", SHOWN).image
    assert np.abs(lossy * 255 - expected).mean() < 3


def test_baseline_jpeg_equals_pillow(shared_data: Path):
    path = shared_data / "dicom" / "cxr_txrv_CR_PA_jpegbaseline_mono2.dcm"
    frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    pixels = np.asarray(Image.open(BytesIO(frame)).convert("L"))
    assert np.array_equal(
        read(path).image * 255, jpeg_round_trip(mimic_cxr_jpg(pixels, "MONOCHROME2"))
    )


def test_extended_jpeg_of_twelve_bits(shared_data: Path):
    image = read(shared_data / "dicom" / "misc_JPGExtended.dcm", SHOWN).image
    # decoded by imagecodecs 2026.3.6 (libjpeg-turbo) the levels run from 0 to 264, mean 14.36999
    assert image.shape == (1024, 256)
    assert image.mean() * 264 == pytest.approx(14.36999, abs=1e-4)


def test_every_single_frame_of_any_scope_decodes(shared_data: Path):
    refused = set()
    for path in sorted((shared_data / "dicom").glob("misc_*")):
        try:
            image = read(path, ImageSpec(size=64, profile="display", scope="any")).image
            assert image.shape == (64, 64)
        except (OutOfScopeError, UnreadableImageError) as error:
            refused.add((path.stem, str(error).split(";")[0]))
    no_pixels = "the file has no pixels"
    assert refused == {
        ("misc_SC_rgb_rle_2frame", "Number of Frames is 2"),
        ("misc_emri_small_jpeg_ls_lossless", "Number of Frames is 10"),
        ("misc_examples_ybr_color", "Number of Frames is 30"),
        ("misc_liver_deflate", "Number of Frames is 3"),
        ("misc_parametric_map_float", "the file has floating-point pixels"),
        ("misc_rtplan", no_pixels),
        ("misc_test-SR", no_pixels),
        ("misc_waveform_ecg", no_pixels),
    }


def test_the_header_says_what_is_needed_and_nobody_s_name():
    ds = radiograph(gradient(), BitsStored=12, HighBit=11, ImagerPixelSpacing=[0.14, 0.15])
    ds.ImageLaterality, ds.StudyDescription = "U", "Chest of Jane Doe, lives in Leeds"
    header = read(saved(ds)).header
    assert (header.modality, header.body_part, header.view_position) == ("DX", "CHEST", "PA")
    assert (header.bits_stored, header.spacing, header.laterality) == (12, (0.14, 0.15), "U")
    assert header.transfer_syntax == uid.ExplicitVRLittleEndian
    assert header.described == ("CHEST",)
    for secret in ("DOE", "Jane", "MRN0042", "Leeds"):
        assert secret not in repr(header)


def test_a_deflate_bomb_is_cut_short():
    ds = radiograph(gradient())
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    data = saved(ds)
    start = 144 + struct.unpack("<I", data[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(bytes(3 << 20)) + packer.flush()
    small = Decoder(trusted=True, limits=Limits(data_bytes=2 << 20))
    with pytest.raises(UnreadableImageError, match="inflates to over"):
        small.read(data[:start] + body, RECIPE)
    with pytest.raises(UnreadableImageError, match="truncated"):
        read(data[:-9])


def test_deep_nesting_is_refused():
    level = struct.pack("<HHIHHI", 8, 0x1140, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(UnreadableImageError, match=r"nested|cannot be decoded"):
        read(bytes(128) + b"DICM" + level * 3000, SHOWN)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PixelData": b"\0\0"}, "holds 2 of 2,400 bytes"),
        ({"Rows": 0}, "0 rows"),
        ({"Rows": 60_000, "Columns": 60_000}, "at most 16,384 a side"),
        ({"BitsStored": 17}, "Bits Stored 17|cannot be decoded"),
        ({"PhotometricInterpretation": "JANE DOE"}, "MONOCHROME1 or MONOCHROME2|cannot be decoded"),
        ({"NumberOfFrames": 7}, "Number of Frames is 7"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_without_patient_data(change, reason):
    ds = radiograph(gradient(), **change)
    with pytest.raises((UnreadableImageError, OutOfScopeError), match=reason) as caught:
        read(saved(ds))
    assert "DOE" not in str(caught.value)
