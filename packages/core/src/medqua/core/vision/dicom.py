"""DICOM bytes to grey levels and header.

The header is read and judged before any pixel is decoded, so that a refusal gives the true reason.
Nothing a file holds is trusted: sizes are capped first, and whatever a parser or codec raises
ends as an `UnreadableImageError` whose message has none of the file's text.
"""

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import gdcm  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import config, dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from medqua.core.errors import ImageError, UnreadableImageError
from medqua.core.vision.display import Grayscale
from medqua.core.vision.limits import Limits
from medqua.core.vision.raster import check_size
from medqua.core.vision.recipe import jpeg_round_trip, mimic_cxr_jpg, stored_values
from medqua.core.vision.scope import Header, anatomy_words, check_frames, check_scope

PLUGINS = {  # one decoder a syntax, so that a file has one result; pylibjpeg-rle can be crashed
    uid.JPEGBaseline8Bit: "gdcm",
    uid.JPEGExtended12Bit: "gdcm",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pydicom",
}
PHANTOM = "MEDQUA PHANTOM"
"""Manufacturer of the phantoms that this project draws, in upper case."""

NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")


def is_dicom(data: bytes) -> bool:
    """Tell whether bytes are a DICOM file, or a data set without preamble and file meta."""
    if data[128:132] == b"DICM":
        return True
    if len(data) < 12:
        return False
    for order in "<>":
        group, element, length = struct.unpack(f"{order}HHI", data[:8])
        explicit = re.fullmatch(rb"[A-Z]{2}", data[4:6]) is not None
        implicit = order == "<" and length <= len(data)
        if group in (0x0002, 0x0008) and element < 0x0100 and (explicit or implicit):
            return True
    return False


def read_dicom(
    data: bytes, *, profile: str, scope: str, limits: Limits
) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.float32], Header]:
    """Decode a DICOM file's content.

    Args:
        data: The whole file.
        profile: "mimic-cxr-jpg" or "display", as in `ImageSpec`.
        scope: "chest" or "any", as in `ImageSpec`.
        limits: Caps on what is inflated and decoded.

    Returns:
        Grey levels `[H, W]`, uint8 or float32 in [0, 1]; and the header.

    Raises:
        UnreadableImageError: If it cannot be parsed or decoded, or has no pixels.
        OutOfScopeError: If its header is out of scope, or it has several frames.
    """
    with distrust():
        ds, header = parse(data, limits)
        if scope == "chest":
            check_scope(header)
        check_frames(header)
        pixels, photometric = frame_pixels(ds, header, limits)
        if profile == "mimic-cxr-jpg":
            return jpeg_round_trip(mimic_cxr_jpg(pixels, photometric)), header
        if header.samples > 1 or header.photometric == "PALETTE COLOR":
            return (pixels / np.float32(255)).astype(np.float32), header
        display = Grayscale.from_dataset(ds, signed=header.signed, bits_stored=header.bits_stored)
        return display.render(pixels), header


def parse(data: bytes, limits: Limits) -> tuple[Dataset, Header]:
    """Parse a file's content, under `distrust`; no pixel is decoded."""
    ds = _parse(data, limits)
    return ds, _header(ds)


@contextmanager
def distrust() -> Iterator[None]:
    """Turn whatever parsers and codecs raise into an `UnreadableImageError` without their text.

    Raises:
        UnreadableImageError: For any error but an `ImageError` and a `MemoryError`.
    """
    with _quiet():
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except RecursionError:
            raise UnreadableImageError(
                "its sequences are nested too deeply; the file is damaged or hostile"
            ) from None
        except Exception as error:  # parsers and codecs raise anything; texts may hold patient data
            raise UnreadableImageError(
                f"the DICOM file cannot be decoded ({type(error).__name__}); "
                "it is damaged: export it again"
            ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom, which quotes values, from warning and logging."""
    logger = logging.getLogger("pydicom")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _parse(data: bytes, limits: Limits) -> Dataset:
    """Parse a data set; `ds.file_meta.TransferSyntaxUID` always holds afterwards."""
    stream = BytesIO(data)
    stream.seek(132 if data[128:132] == b"DICM" else 0)
    meta = FileMetaDataset(
        read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if data[stream.tell() : stream.tell() + 2] == b"\x02\x00"
        else {}
    )
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        ds = dcmread(BytesIO(_inflate(data[stream.tell() :], limits)), force=True)
        meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.file_meta = meta
        return ds
    ds = dcmread(BytesIO(data), force=True)
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        ds.file_meta.TransferSyntaxUID = NATIVE[0 if implicit else 1 if little else 2]
    return ds


def _inflate(data: bytes, limits: Limits) -> bytes:
    """Inflate a deflated data set (PS3.5 A.5), no further than the cap."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(data, limits.data_bytes)
    if inflater.unconsumed_tail:
        raise UnreadableImageError(
            f"its data set inflates to over {limits.data_bytes:,} bytes; "
            "no single radiograph is that large"
        )
    if not inflater.eof:
        raise UnreadableImageError("its deflated data set is truncated; export it again")
    return plain


def _header(ds: Dataset) -> Header:
    """Gather what is needed of a header."""
    descriptions = ("StudyDescription", "SeriesDescription", "ProtocolName")
    bits_allocated = _integer(ds, "BitsAllocated", 0)
    bits_stored = _integer(ds, "BitsStored", bits_allocated)
    return Header(
        modality=term(ds, "Modality"),
        sop_class=term(ds, "SOPClassUID"),
        transfer_syntax=str(ds.file_meta.TransferSyntaxUID),
        body_part=term(ds, "BodyPartExamined"),
        region_codes=_codes(ds, "AnatomicRegionSequence"),
        described=anatomy_words(str(ds.get(keyword) or "") for keyword in descriptions),
        view_position=term(ds, "ViewPosition"),
        view_codes=_codes(ds, "ViewCodeSequence"),
        laterality=term(ds, "ImageLaterality") or term(ds, "Laterality"),
        row_direction=term(ds, "PatientOrientation"),
        presentation_intent=term(ds, "PresentationIntentType"),
        photometric=term(ds, "PhotometricInterpretation"),
        rows=_integer(ds, "Rows", 0),
        columns=_integer(ds, "Columns", 0),
        frames=_integer(ds, "NumberOfFrames", 1),
        samples=_integer(ds, "SamplesPerPixel", 1),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=_integer(ds, "HighBit", bits_stored - 1),
        signed=_integer(ds, "PixelRepresentation", 0) == 1,
        spacing=_spacing(ds),
        phantom=term(ds, "Manufacturer") == PHANTOM,
    )


def frame_pixels(
    ds: Dataset, header: Header, limits: Limits, frame: int = 0
) -> tuple[npt.NDArray[np.integer], str]:
    """Decode one frame to stored values `[H, W]` and their photometric interpretation."""
    if "PixelData" not in ds:
        kind = "floating-point" if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds else "no"
        raise UnreadableImageError(
            f"the file has {kind} pixels; a radiograph has integers in Pixel Data"
        )
    check_size(header.rows, header.columns, limits)
    cells = header.rows * header.columns * header.samples
    if cells * max(header.bits_allocated, 8) // 8 > limits.data_bytes:
        raise UnreadableImageError(
            f"its pixels would decode to over {limits.data_bytes:,} bytes; "
            "no single radiograph is that large"
        )
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax not in NATIVE and syntax not in PLUGINS:
        name = syntax.name if syntax.name != syntax else "not a listed one"
        raise UnreadableImageError(
            f"its transfer syntax ({name}) is not read; convert it to Explicit VR Little Endian"
        )
    needed = (cells * header.frames * header.bits_allocated + 7) // 8
    if header.photometric == "YBR_FULL_422":
        needed = needed * 2 // 3
    if syntax in NATIVE and len(ds.PixelData) < needed:
        raise UnreadableImageError(
            f"it holds {len(ds.PixelData):,} of {needed:,} bytes of pixels; copy it again"
        )
    if syntax == uid.JPEGExtended12Bit and header.bits_stored > 8:
        pixels = _jpeg_12_bits(ds, header, frame)
    else:
        plugin = PLUGINS.get(syntax, "")
        index = frame if header.frames > 1 else None
        pixels = pixel_array(ds, index=index, decoding_plugin=plugin, correct_unused_bits=False)
    if pixels.shape[:2] != (header.rows, header.columns):
        raise UnreadableImageError("its pixels do not have the size that the header announces")
    if header.photometric == "PALETTE COLOR":
        return _luminance(apply_color_lut(pixels, ds)), "MONOCHROME2"
    if header.samples == 3 and header.photometric in COLOUR:
        return _luminance(pixels), "MONOCHROME2"
    if header.samples != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableImageError(
            f"Photometric Interpretation and {header.samples} samples per pixel do not go "
            "together; a radiograph is MONOCHROME1 or MONOCHROME2"
        )
    return stored_values(pixels, header.bits_stored, header.high_bit), header.photometric


def _jpeg_12_bits(ds: Dataset, header: Header, frame: int) -> npt.NDArray[np.uint16]:
    """Decode JPEG Extended of 12 bits `[H, W]`, which pydicom holds GDCM unable to."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(get_frame(ds.PixelData, frame, number_of_frames=header.frames))
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((header.columns, header.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(header.photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(str(ds.file_meta.TransferSyntaxUID))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(header.samples, 16, 12, 11, 0))
    cells = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM's char* arrives as str
    return np.frombuffer(cells, "<u2").reshape(header.rows, header.columns)


def _luminance(colour: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Turn RGB `[H, W, 3]` of 8 or 16 bits into BT.601 luminance of 8 bits."""
    if colour.dtype == np.uint16:
        colour = (colour >> 8).astype(np.uint8)
    return np.asarray(Image.fromarray(colour[..., :3]).convert("L"))


def _first(ds: Dataset, keyword: str) -> Any:
    """Return an attribute's first value, or None."""
    value = ds.get(keyword)
    if isinstance(value, str | int | float) or value is None:
        return value
    return value[0] if len(value) else None


def term(ds: Dataset, keyword: str) -> str:
    """Return a coded attribute's first value in upper case, or an empty string."""
    return str(_first(ds, keyword) or "").strip(" \0").upper()[:64]


def _integer(ds: Dataset, keyword: str, default: int) -> int:
    """Return an integer attribute, or the default where it is absent or empty."""
    value = _first(ds, keyword)
    return default if value is None or value == "" else int(value)


def _codes(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the Code Values (0008,0100) of a code sequence."""
    return tuple(term(item, "CodeValue") for item in ds.get(keyword) or ())


def _spacing(ds: Dataset) -> tuple[float, float] | None:
    """Return row and column spacing in millimetres."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        value = ds.get(keyword)
        if value and len(value) == 2 and all(part for part in value):
            return float(value[0]), float(value[1])
    return None
