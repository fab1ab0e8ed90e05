"""Pretrain the small backbone that ships with medqua-core: on phantoms, from random weights.

    hatch run python tools/pretrain_tiny.py --output packages/core/src/medqua/core/model/tiny_cxr

All of a tiny Qwen2.5-VL learns to name the 14 observations on phantoms of a seed that no recipe
uses; what is kept is the backbone, without the head. Muon trains the hidden matrices. Seeds are
fixed; the folder appears whole or not at all. `--work` keeps the phantoms and a checkpoint of each
eighth, from which the same command goes on.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from medqua.core.model import MedQuaClassifier, TinyArchitecture, load_backbone
from medqua.core.vision.image import ImageSpec, read_image
from medqua.core.vision.processor import build_inputs
from medqua.train.data.manifest import LabelPolicy
from medqua.train.data.mimic import read_mimic
from medqua.train.data.phantom import write_tree
from medqua.train.evaluation.metrics import macro_auroc

ARCHITECTURE = TinyArchitecture(
    vision_hidden=96,
    vision_mlp=192,
    hidden=64,
    heads=2,
    mlp=128,
    initializer_range=0.08,
)
PROMPT = "Name the findings in this frontal chest radiograph."
SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the backbone")
    parser.add_argument("--work", type=Path, required=True, help="folder of what can go on")
    parser.add_argument("--passes", type=int, default=100_000, help="images seen in training")
    parser.add_argument("--patients", type=int, default=3000, help="phantom patients")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    images, targets, tested = load_phantoms(arguments.work, arguments.patients)
    backbone = load_backbone("tiny", architecture=ARCHITECTURE, seed=0)
    model = MedQuaClassifier(backbone.model, targets.shape[1], tune="full")
    rng = np.random.default_rng(SEED)

    def score(rows: npt.NDArray[np.intp], *, augment: bool, step: int = 0) -> Tensor:
        batch = images[rows].astype(np.float32) / 255
        if augment:
            batch = shifted(batch, np.random.default_rng((SEED, step)))
        return model(**build_inputs(backbone.processor, list(batch), PROMPT))

    def test() -> float | None:
        model.eval()
        with torch.no_grad():
            parts = [score(part, augment=False) for part in np.array_split(tested, 16)]
        model.train()
        return macro_auroc(torch.cat(parts).double().numpy(), targets[tested])

    trained = np.setdiff1d(np.arange(len(images)), tested)
    steps = arguments.passes // arguments.batch
    optimizers, schedules = make_optimizers(model, steps)
    order = np.concatenate(
        [rng.permutation(trained) for _ in range(arguments.passes // len(trained) + 1)]
    )
    checkpoint, first = arguments.work / f"{steps}-steps.pt", 0
    parts = [model, *optimizers, *schedules]
    if checkpoint.exists():
        first, *states = torch.load(checkpoint, weights_only=True)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
    started = time.time()
    model.train()
    for step in track(range(first, steps), description="Pretraining"):
        rows = order[step * arguments.batch : (step + 1) * arguments.batch]
        target = torch.from_numpy(targets[rows].astype(np.float32))
        loss = functional.binary_cross_entropy_with_logits(
            score(rows, augment=True, step=step), target.clamp(min=0), weight=(target >= 0).float()
        )
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % max(steps // 8, 1) == max(steps // 8, 1) - 1:
            took = time.time() - started
            print(f"step {step + 1}: test macro AUROC {test():.4f}, {took:.0f} s", flush=True)
            partial = checkpoint.with_suffix(".partial")
            torch.save([step + 1, *(part.state_dict() for part in parts)], partial)
            partial.replace(checkpoint)
    figure = {
        "test_macro_auroc": test(),
        "passes": arguments.passes,
        "phantom_seed": SEED,
        "patients": arguments.patients,
        "train_images": len(trained),
        "test_images": len(tested),
    }
    unfinished = arguments.output.with_name(f".{arguments.output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    backbone.model.save_pretrained(unfinished)
    backbone.processor.save_pretrained(unfinished)
    (unfinished / "pretraining.json").write_text(json.dumps(figure, indent=2) + "\n")
    shutil.rmtree(arguments.output, ignore_errors=True)
    unfinished.replace(arguments.output)


def load_phantoms(
    work: Path, patients: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int8], npt.NDArray[np.intp]]:
    """Frontal images `[N, 224, 224]`, targets `[N, 14]`, and the rows of the test split."""
    root = work / f"phantoms-{patients}"
    if not root.exists():
        partial = root.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_tree(partial, patients=patients, seed=SEED, size=224, dicom=False)
        partial.replace(root)
    manifest = read_mimic(root)
    table = manifest.frame
    spec = ImageSpec(size=224)
    images = [np.rint(read_image(root / name, spec) * 255) for name in table["image"]]
    targets = LabelPolicy().targets(table.select(manifest.labels))
    tested = np.flatnonzero((table["split"] == "test").to_numpy())
    return np.stack(images).astype(np.uint8), targets, tested


def shifted(batch: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Shift each image by up to 8 pixels and change its gamma by about a tenth."""
    moved = np.stack([np.roll(x, tuple(rng.integers(-8, 9, 2)), (0, 1)) for x in batch])
    gamma = np.exp(0.1 * rng.standard_normal((len(batch), 1, 1)))
    return np.clip(moved**gamma, 0, 1).astype(np.float32)


def make_optimizers(
    model: MedQuaClassifier, steps: int
) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
    """Muon for hidden matrices, AdamW for embeddings, vectors and the head."""
    hidden, other = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim == 2 and "embed" not in name and "head" not in name
            (hidden if matrix else other).append(parameter)
    rates = (0.02, 2e-3)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=rates[0], momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(other, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules: list[torch.optim.lr_scheduler.LRScheduler] = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=steps, pct_start=0.05, cycle_momentum=False
        )
        for optimizer, rate in zip(optimizers, rates, strict=True)
    ]
    return optimizers, schedules


if __name__ == "__main__":
    main()
