"""What `bench_serve` serves, and the plain pipeline that it is held against.

The demo bundle, a stack of the 3B model's width with random weights, and each of them without its
adapter. The plain pipeline is what one writes first: pydicom, 8-bit Pillow images, the processor of
transformers, one image at a time through the torch model.
"""

import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import peft
import pydicom
import torch
from PIL import Image

from medqua.core import Bundle, EntropyRouter, ImageSpec, QuasarConfig
from medqua.core.findings import CHEXPERT_NAMES
from medqua.core.model import MedQuaClassifier, TinyArchitecture, load_backbone
from medqua.serve.demo import DEMO

WIDTH = TinyArchitecture(
    temporal_patch_size=2,
    vision_depth=2, vision_hidden=1280, vision_heads=16, vision_mlp=3420,
    decoder_layers=2, hidden=2048, heads=16, mlp=11_008,
)  # fmt: skip
"""Widths of Qwen2.5-VL-3B, two of its 32 vision blocks and two of its 36 decoder layers. One
adapter on the first stands for one on every second, three times as many as usual."""


def save_width(folder: Path, *, adapted: bool) -> Path:
    """Save a bundle of the real width with random weights, a fifth of its tokens routed."""
    torch.manual_seed(0)
    backbone = load_backbone(architecture=WIDTH, seed=0)
    model = backbone.model
    if adapted:
        model = peft.get_peft_model(model, QuasarConfig(blocks=[1]))
    classifier = MedQuaClassifier(model, len(CHEXPERT_NAMES), tune="full")
    for module in classifier.modules():
        if isinstance(module, EntropyRouter):  # entropies here are N(0, 3.5): a fifth lie above
            module.threshold_logit.fill_(3.0)
    spec = ImageSpec(size=448)
    return Bundle(classifier, backbone, spec, CHEXPERT_NAMES).save(folder)


def save_bare(bundle: Path, folder: Path) -> Path:
    """Save a bundle's backbone and head without the adapter, to tell what the adapter costs."""
    opened = Bundle.open(bundle)
    adapted = opened.classifier.backbone
    assert isinstance(adapted, peft.PeftModel)
    classifier = MedQuaClassifier(adapted.unload(), len(opened.labels), tune="full")
    return Bundle(classifier, opened.backbone, opened.image, opened.labels).save(folder)


def save(name: str, folder: Path) -> Path:
    """Save `demo`, `width`, or either with `-bare` behind it, and return the bundle's folder."""
    match name:
        case "demo":
            shutil.copytree(DEMO, folder)
            return folder
        case "demo-bare":
            return save_bare(DEMO, folder)
        case _:
            return save_width(folder, adapted=not name.endswith("-bare"))


def plain_pixels(content: bytes) -> np.ndarray:
    """Return `[H, W]` uint8: decoded by pydicom, scaled by percentiles, upright in grey."""
    dataset = pydicom.dcmread(BytesIO(content), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    pixels = dataset.pixel_array.astype(np.float32)
    low, high = np.percentile(pixels, (0.5, 99.5))
    scaled = np.clip((pixels - low) / max(high - low, 1), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        scaled = 1 - scaled
    return (255 * scaled).astype(np.uint8)


def plain_pipeline(bundle: Path) -> Callable[[bytes], np.ndarray]:
    """Return what makes probabilities of one file's bytes, the plain way."""
    opened = Bundle.open(bundle)
    processor, classifier = opened.backbone.processor, opened.classifier.eval()
    size = opened.image.size or 448

    def probabilities(content: bytes) -> np.ndarray:
        image = Image.fromarray(plain_pixels(content)).convert("RGB")
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        words = [{"type": "text", "text": opened.prompt}, {"type": "image"}]
        text = processor.apply_chat_template([{"role": "user", "content": words}], tokenize=False)
        pixels = processor.image_processor(images=[image], do_resize=False, return_tensors="pt")
        visual = int(pixels["image_grid_thw"].prod()) // processor.image_processor.merge_size**2
        text = text.replace(processor.image_token, processor.image_token * visual)
        tokens = processor.tokenizer(text, return_tensors="pt")
        kinds = (tokens["input_ids"] == processor.image_token_id).long()
        with torch.inference_mode():
            logits = classifier(**tokens, **pixels, mm_token_type_ids=kinds)
        return logits.sigmoid().numpy()

    return probabilities
