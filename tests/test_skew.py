"""Training and serving see one file as the same numbers."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import generate_uid

from medqua.core import Bundle, ImageSpec, read_image
from medqua.core.vision.image import Decoder
from medqua.core.vision.processor import build_inputs
from medqua.serve.inference.pipeline import predict_files
from medqua.train.data.dataset import Collator, RadiographDataset
from medqua.train.data.images import FolderStore

GENUINE = (
    "dicom/cxr_CR-MONO1-10-chest.dcm",
    "dicom/cxr_NIH_DX_implicit_nofinding.dcm",
    "dicom/cxr_RG1_J2KI.dcm",
    "dicom/cxr_txrv_CR_PA_jpegbaseline_mono2.dcm",
    "cxr/nih_512/00000013_025.jpg",
)


def frontal(tree: Path, suffix: str) -> list[Path]:
    """Phantom files that are not lateral."""
    return [
        dicom.with_suffix(suffix)
        for dicom in sorted(tree.rglob("*.dcm"))
        if pydicom.dcmread(dicom, stop_before_pixels=True).ViewPosition in ("AP", "PA")
    ]


def training_inputs(bundle: Bundle, file: Path, *, keep: bool) -> dict[str, torch.Tensor]:
    """The tensors that training's data set and collator make of one file."""
    labels = np.zeros((1, len(bundle.labels)), np.int8)
    data = RadiographDataset([file.name], labels, FolderStore(file.parent), bundle.image, keep=keep)
    if keep:
        data.preload(1)
    return Collator(bundle.backbone.processor, bundle.prompt)([data[0]])


def serving_inputs(bundle: Bundle, file: Path) -> dict[str, torch.Tensor]:
    """The tensors that serving's decoder and the bundle make of it."""
    with Decoder() as decoder:
        image = decoder.read(file.read_bytes(), bundle.image).image
    return build_inputs(bundle.backbone.processor, [image], bundle.prompt)


def assert_equal_inputs(bundle: Bundle, file: Path) -> None:
    served = serving_inputs(bundle, file)
    for keep in (False, True):
        trained = training_inputs(bundle, file, keep=keep)
        for name, tensor in served.items():
            assert torch.equal(tensor, trained[name]), f"{name} of {file.name}"


@pytest.mark.parametrize("suffix", [".jpg", ".dcm"])
def test_phantoms_give_training_and_serving_equal_tensors(
    run_folder: Path, phantom_tree: Path, suffix: str
):
    bundle = Bundle.open(run_folder / "bundle")
    for file in frontal(phantom_tree, suffix)[:6]:
        assert_equal_inputs(bundle, file)


@pytest.mark.parametrize("name", GENUINE)
def test_genuine_radiographs_give_training_and_serving_equal_tensors(
    run_folder: Path, shared_data: Path, name: str
):
    assert_equal_inputs(Bundle.open(run_folder / "bundle"), shared_data / name)


def test_a_dicom_and_its_jpg_give_equal_findings(run_folder: Path, phantom_tree: Path):
    bundle = Bundle.open(run_folder / "bundle")
    dicoms, jpgs = frontal(phantom_tree, ".dcm")[:3], frontal(phantom_tree, ".jpg")[:3]
    for one, two in zip(predict_files(bundle, dicoms), predict_files(bundle, jpgs), strict=True):
        assert one.findings is not None
        assert one.findings == two.findings


@pytest.mark.parametrize("profile", ["mimic-cxr-jpg", "display"])
def test_monochrome_twins_of_one_exposure_give_equal_images(
    shared_data: Path, tmp_path: Path, profile: str
):
    original = pydicom.dcmread(shared_data / "dicom/cxr_CR-MONO1-10-chest.dcm", force=True)
    original.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTSequence", "PresentationLUTShape"):
        if keyword in original:
            delattr(original, keyword)
    paths = []
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        ds = pydicom.dcmread(shared_data / "dicom/cxr_CR-MONO1-10-chest.dcm", force=True)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        ds.SOPInstanceUID = generate_uid()
        ds.PhotometricInterpretation = photometric
        for keyword in ("WindowCenter", "WindowWidth", "VOILUTSequence", "PresentationLUTShape"):
            if keyword in ds:
                delattr(ds, keyword)
        pixels = original.pixel_array
        if photometric == "MONOCHROME2":
            pixels = ((1 << ds.BitsStored) - 1 - pixels).astype(pixels.dtype)
        ds.PixelData = pixels.tobytes()
        paths.append(tmp_path / f"{photometric}.dcm")
        ds.save_as(paths[-1], enforce_file_format=False, implicit_vr=True, little_endian=True)
    one, two = (read_image(path, ImageSpec(profile=profile, size=None)) for path in paths)
    assert np.array_equal(one, two)
    assert one.std() > 0.1
