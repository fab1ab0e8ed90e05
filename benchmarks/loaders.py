"""Images per second: from `data.cache`, and as one writes it first, with Pillow or pydicom.

Both sides are a torch `DataLoader` over the same files in the same order, batches of 32, without
worker processes, giving `[32, 224, 224]` float32 in [0, 1]. The peer opens, converts, resizes and
scales each file in each epoch; ours decoded each once, into a cache that is written before the
timing (its seconds are a row of their own).
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from medqua.core.vision.image import ImageSpec
from medqua.train.data.cache import build_cache
from medqua.train.data.dataset import Collator, RadiographDataset
from medqua.train.data.images import FolderStore
from medqua.train.model import build_model
from medqua.train.recipe import load_recipe
from medqua.train.trainer.losses import TaskLoss

SIZE, BATCH = 224, 32


class PlainDataset(Dataset[torch.Tensor]):
    """Files, decoded whenever they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        path = self.files[index]
        if path.suffix == ".dcm":
            pixels = pydicom.dcmread(path).pixel_array.astype(np.float32)
            pixels -= pixels.min()
            image = Image.fromarray(pixels / max(float(pixels.max()), 1.0))
            scaled = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        else:
            with Image.open(path) as opened:
                image = opened.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            scaled = np.asarray(image, np.float32) / 255
        return torch.from_numpy(np.array(scaled))


def stacked(samples: Sequence[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample["image"] for sample in samples]))


def rate(loader: DataLoader[Any]) -> float:
    """Images per second of one epoch."""
    started, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch["labels"] if isinstance(batch, dict) else batch)
    return count / (time.perf_counter() - started)


def medians(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median of each, timed in turn, so that a busy moment meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(run())
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def training(repeats: int) -> Callable[[], float]:
    """Images per second of a training step of the recipe `mimic`, forward, backward and AdamW."""
    recipe = load_recipe("mimic")
    model, backbone = build_model(recipe, 14)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser, loss = torch.optim.AdamW(trained), TaskLoss()
    image = np.random.default_rng(0).random((SIZE, SIZE), dtype=np.float32)
    sample = {"image": image, "labels": np.zeros(14, np.int8), "index": 0, "readable": True}
    batch = Collator(backbone.processor, recipe.backbone.prompt)([sample] * BATCH)  # type: ignore[list-item]
    labels = batch.pop("labels")
    del batch["index"], batch["readable"]
    model.train()

    def step() -> float:
        started = time.perf_counter()
        optimiser.zero_grad()
        loss(model(**batch), labels).backward()
        optimiser.step()
        return BATCH / (time.perf_counter() - started)

    step()
    return step


def rows(radiographs: Path, repeats: int) -> list[dict[str, Any]]:
    """Rows for the report: JPG and PNG, DICOM, writing, and what training takes."""
    torch.set_num_threads(1)
    jpgs = [p for p in sorted((radiographs / "cxr").rglob("*")) if p.suffix in (".jpg", ".png")]
    dicom = sorted((radiographs / "dicom").glob("cxr_*.dcm"))
    kinds = {
        "JPG and PNG of 512 to 1024 px": jpgs[:: max(1, len(jpgs) // 320)][:320],
        "DICOM": [p for p in dicom if p.read_bytes()[128:132] == b"DICM"] * 8,
    }
    spec, found = ImageSpec(size=SIZE, scope="any"), []
    recipe = load_recipe("mimic")
    collator = Collator(build_model(recipe, 14)[1].processor, recipe.backbone.prompt)
    step = training(repeats)
    for kind, files in kinds.items():
        names = [file.relative_to(radiographs).as_posix() for file in files]
        store, unique = FolderStore(radiographs), sorted(set(names))
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            cache = build_cache(Path(folder), store, spec, "benchmark", unique)
            writing = len(unique) / (time.perf_counter() - started)
            ours = RadiographDataset(
                names, np.zeros((len(names), 14), np.int8), store, spec, cache=cache.images(names)
            )
            cached: DataLoader[Any] = DataLoader(ours, BATCH, collate_fn=stacked)
            plain: DataLoader[Any] = DataLoader(PlainDataset(files), BATCH)
            batches: DataLoader[Any] = DataLoader(ours, BATCH, collate_fn=collator)
            taken = medians(
                {
                    "cached": lambda: rate(cached),  # noqa: B023  # called within this turn
                    "plain": lambda: rate(plain),  # noqa: B023
                    "batches": lambda: rate(batches),  # noqa: B023
                    "training": step,
                },
                repeats,
            )
        found.append(
            row(
                f"loader, {len(names)} {kind} at {SIZE} px, images per second, one process",
                taken["cached"],
                {"pydicom and Pillow": taken["plain"]},
                writing_images_per_second=round(writing, 1),
            )
        )
        if kind.startswith("JPG"):
            found.append(
                row(
                    f"loader with the processor's batches at {SIZE} px beside a training step of "
                    "tiny-cxr by the recipe mimic, images per second, one thread each",
                    taken["batches"],
                    {"training step": taken["training"]},
                )
            )
    return found


def row(case: str, ours: float, peers: dict[str, float], **more: float) -> dict[str, Any]:
    """A row in which more is better."""
    best = max(peers, key=lambda name: peers[name])
    ratio = round(ours / peers[best], 2)
    return {"case": case, "ours": ours, "peers": peers, "best_peer": best, "ratio": ratio, **more}
