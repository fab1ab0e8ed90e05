"""The files of one phantom study: DICOM objects and their JPG twins."""

import datetime
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

from medqua.core.vision.recipe import encode_jpeg, mimic_cxr_jpg
from medqua.train.data.phantom.canvas import Exposure
from medqua.train.data.phantom.causes import Patient
from medqua.train.data.phantom.detector import Storage

FIELD_OF_VIEW = 360.0
"""Width of the detector, in millimetres."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who and when, all of it invented."""

    subject: int
    """Subject id; phantoms have 90,000,001 and above, which MIMIC does not use."""
    study: int
    """Study id; phantoms have 95,000,001 and above."""
    image: str
    """Image id, five groups of eight hexadecimal digits."""
    moment: datetime.datetime
    """Acquisition."""


def write_image(
    folder: Path,
    identity: Identity,
    patient: Patient,
    exposure: Exposure,
    storage: Storage,
    stored: npt.NDArray[np.uint16],
    *,
    compress: bool,
    dicom: bool,
) -> None:
    """Write `ID.jpg` by the published recipe and, if asked, the `ID.dcm` it comes from.

    Args:
        folder: Study folder; made if absent.
        identity: Names of the files and of what is in them.
        patient: Sex and age.
        exposure: View and size.
        storage: Bits and photometric interpretation.
        stored: Pixels `[H, W]` as stored.
        compress: Write the DICOM pixels as lossless JPEG 2000.
        dicom: Write the DICOM object too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    levels = mimic_cxr_jpg(stored, storage.photometric, bits_stored=storage.bits)
    (folder / f"{identity.image}.jpg").write_bytes(encode_jpeg(levels))
    if dicom:
        ds = _dataset(identity, patient, exposure, storage, stored)
        if compress:
            ds.compress(JPEG2000Lossless, generate_instance_uid=False)
        ds.save_as(folder / f"{identity.image}.dcm", enforce_file_format=True)


def _dataset(
    identity: Identity,
    patient: Patient,
    exposure: Exposure,
    storage: Storage,
    stored: npt.NDArray[np.uint16],
) -> FileDataset:
    portable = exposure.view == "AP"
    sop_class = (
        ComputedRadiographyImageStorage if portable else DigitalXRayImageStorageForPresentation
    )
    uid = generate_uid(entropy_srcs=["phantom", identity.image])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(BytesIO(), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = identity.moment.strftime(
        "%Y%m%d"
    )
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = identity.moment.strftime(
        "%H%M%S"
    )
    ds.AccessionNumber = ""
    ds.Modality = "CR" if portable else "DX"
    ds.Manufacturer = "MedQua phantom"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "SYNTHETIC CHEST"
    ds.PatientName = f"PHANTOM^{identity.subject}"
    ds.PatientID = str(identity.subject)
    ds.PatientBirthDate = ""
    ds.PatientSex = patient.sex
    ds.PatientAge = f"{patient.age:03d}Y"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = "LL" if exposure.view == "LATERAL" else exposure.view
    # a lateral has its spine on the right
    ds.PatientOrientation = ["P", "F"] if exposure.view == "LATERAL" else ["L", "F"]
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["phantom study", str(identity.study)])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["phantom series", identity.image])
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = str(identity.study), 1, 1
    ds.BurnedInAnnotation = "NO"
    spacing = round(FIELD_OF_VIEW / exposure.width, 4)
    ds.ImagerPixelSpacing = [spacing, spacing]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = storage.photometric
    ds.PresentationLUTShape = "INVERSE" if storage.photometric == "MONOCHROME1" else "IDENTITY"
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, storage.bits, storage.bits - 1
    ds.PixelRepresentation = 0
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = -1 if storage.photometric == "MONOCHROME1" else 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.WindowCenter, ds.WindowWidth = 1 << (storage.bits - 1), 1 << storage.bits
    ds.LossyImageCompression = "00"
    _view_code(ds, exposure.view)
    ds.PixelData = np.ascontiguousarray(stored).tobytes()
    return ds


def _view_code(ds: Dataset, view: str) -> None:
    """View Code Sequence (0054,0220) by CID 4010 of DICOM PS3.16."""
    value, meaning = {
        "AP": ("399348003", "antero-posterior"),
        "PA": ("272479007", "postero-anterior"),
        "LATERAL": ("399173006", "left lateral"),
    }[view]
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    ds.ViewCodeSequence = [code]
