"""What a run is: typed recipes, from TOML and `key=value` overrides, refused before they start.

A recipe is a tree of frozen dataclasses. `load_recipe` reads one that is shipped
(`medqua/train/recipes/NAME.toml`) or a file of one's own, puts overrides such as `optim.epochs=5`
or `data.views=AP,PA` on top, and builds it; `recipe.to_dict()` goes into `run.json`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from medqua.core.adapter import QuasarConfig
from medqua.core.errors import ConfigError
from medqua.core.model.classifier import POOLINGS
from medqua.core.model.tiny import TinyArchitecture
from medqua.core.vision.image import ImageSpec
from medqua.train.data.augmentation import Augmentation
from medqua.train.data.folder import FolderColumns
from medqua.train.data.manifest import Blank, LabelPolicy, Uncertain
from medqua.train.data.mimic import FRONTAL, LABELS, ImageSource, LabelSource, TestLabels
from medqua.train.data.split import SplitFractions
from medqua.train.typed import Raw, as_plain, build

Tune = Literal["auto", "adapter", "full", "head"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """What every data set has."""

    root: str = ""
    """Folder (or archive) of the data set."""

    uncertain: Uncertain = "ignore"
    """What -1 counts as in training: masked, or U-Zeros, U-Ones of CheXpert."""

    uncertain_in_evaluation: Uncertain = "ignore"
    """The same for validation and test."""

    blank: Blank = "zero"
    """What a label that is not mentioned counts as, everywhere."""

    check_images: bool = True
    """Look for every image before training starts; off saves one stat call an image."""

    skip_unreadable: bool = False
    """Go on without images that are absent or unreadable, count them and list them in the run."""

    keep_in_memory: bool = False
    """Decode every image once, before training: 1 byte a pixel for 8-bit images, 4 for others."""

    limit: int = 0
    """Images of each split to use, chosen by a hash of their name; 0 is all. For quick tries."""

    workers: int = 0
    """Processes that read images for each training process; 0 reads in the training process."""

    def __post_init__(self) -> None:
        self.policy(training=True)
        self.policy(training=False)
        _at_least("data.limit", self.limit, 0)
        _at_least("data.workers", self.workers, 0)
        if self.keep_in_memory and self.workers:
            raise ConfigError(
                f"data.keep_in_memory with data.workers = {self.workers}: images in memory need no "
                "workers; set data.workers=0"
            )

    def policy(self, *, training: bool) -> LabelPolicy:
        """How labels become targets, in training or in evaluation."""
        return LabelPolicy(self.uncertain if training else self.uncertain_in_evaluation, self.blank)


@dataclass(frozen=True, kw_only=True)
class PhantomSection:
    """The synthetic radiographs that stand in where no MIMIC root is given."""

    patients: int = 600
    """Synthetic patients."""

    size: int = 224
    """Side of the images, in pixels."""

    seed: int = 0
    """Seed of everything about them."""

    dicom: bool = False
    """Write DICOM files beside the JPGs; `data.source=dicom` needs them."""

    def __post_init__(self) -> None:
        _at_least("data.phantoms.patients", self.patients, 10)
        _at_least("data.phantoms.size", self.size, 64)


@dataclass(frozen=True, kw_only=True)
class MimicData(DataSection):
    """MIMIC-CXR-JPG 2.1.0; phantoms in the same layout when `root` is empty."""

    kind: Literal["mimic"] = "mimic"
    """Which data set it is."""

    image_root: str = ""
    """Folder that holds `files/`, where it is not `root`: a MIMIC-CXR tree of DICOM, say."""

    source: ImageSource = "jpg"
    """Which files to read."""

    views: tuple[str, ...] = FRONTAL
    """`ViewPosition` values to keep; empty keeps every view."""

    labels: tuple[str, ...] = LABELS
    """Labels, in the order of logits."""

    label_source: LabelSource = "chexpert"
    """Which labeler's table to read."""

    test_labels: TestLabels = "same"
    """`radiologist`: test labels from `mimic-cxr-2.1.0-test-set-labeled.csv`."""

    phantoms: PhantomSection = field(default_factory=PhantomSection)
    """What to generate when `root` is empty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.labels:
            raise ConfigError("data.labels is empty: name at least one label")
        if self.source == "dicom" and not self.root and not self.phantoms.dicom:
            raise ConfigError(
                "data.source=dicom without data.root: phantoms come as DICOM only with "
                "data.phantoms.dicom=true"
            )
        if self.image_root and not self.root:
            raise ConfigError("data.image_root without data.root: the tables are under data.root")


@dataclass(frozen=True, kw_only=True)
class ChestMnistData(DataSection):
    """ChestMNIST of MedMNIST v2 and later."""

    kind: Literal["chestmnist"] = "chestmnist"
    """Which data set it is."""

    pixels: Literal[28, 64, 128, 224] = 64
    """Side of the published images."""

    download: bool = False
    """Download the archive into `root` if it is not there."""

    check_md5: bool = True
    """Compare the archive with its published sum."""


@dataclass(frozen=True, kw_only=True)
class FolderData(DataSection):
    """Images with a table of labels."""

    kind: Literal["folder"] = "folder"
    """Which data set it is."""

    table: str = ""
    """CSV file relative to `root`; found by name if empty."""

    columns: FolderColumns = field(default_factory=FolderColumns)
    """Which columns are what."""

    labels: tuple[str, ...] = ()
    """Label columns, in the order of logits; empty takes those with known names."""

    views: tuple[str, ...] = FRONTAL
    """Views to keep, where the table tells; empty keeps every view."""

    fractions: SplitFractions = field(default_factory=SplitFractions)
    """Patients held out, where the table has no split."""

    split_seed: int = 0
    """Seed of the split."""

    stratify: bool = False
    """Split the patients of each finding in proportion."""


DATA_KINDS: Mapping[str, type[DataSection]] = {
    "mimic": MimicData,
    "chestmnist": ChestMnistData,
    "folder": FolderData,
}


@dataclass(frozen=True, kw_only=True)
class BackboneSection:
    """The vision-language model under the adapter."""

    source: str = "tiny"
    """Hub id, folder, `tiny-cxr` (small, pretrained on phantoms) or `tiny` (small, random)."""

    revision: str = ""
    """Branch, tag or commit on the hub; empty is its main branch."""

    dtype: Precision = "float32"
    """Type of its weights; the adapter and the head are float32 always."""

    tune: Tune = "auto"
    """What is trained beside the head; `auto` is `full` for `tiny` and `adapter` for others."""

    prompt: str = "Name the findings in this frontal chest radiograph."
    """Text before the image."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    tiny: TinyArchitecture = field(default_factory=TinyArchitecture)
    """Sizes of the tiny model."""

    @property
    def tuned(self) -> Literal["adapter", "full", "head"]:
        """What is trained, with `auto` decided."""
        if self.tune != "auto":
            return self.tune
        return "full" if self.source == "tiny" else "adapter"


@dataclass(frozen=True, kw_only=True)
class HeadSection:
    """From hidden states to logits."""

    pooling: Literal["visual_mean", "last_token"] = "visual_mean"
    """What the head reads."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError(f"head.pooling = {self.pooling!r}: needed one of {POOLINGS}")


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    """AdamW, with a learning rate for each part."""

    epochs: float = 3.0
    """Passes over the training split."""

    max_steps: int = 0
    """Optimiser steps, instead of `epochs`; 0 leaves it to `epochs`."""

    batch_size: int = 32
    """Images of one optimiser step, over all processes."""

    micro_batch_size: int = 0
    """Images of one forward in one process; 0 is `batch_size` over the processes."""

    head: float = 1e-3
    """Learning rate of the head."""

    adapter: float = 1e-3
    """Learning rate of router, shadow and projections."""

    theta: float = 1e-2
    """Learning rate of the circuit's rotation angles, in radians a step."""

    backbone: float = 1e-3
    """Learning rate of the backbone, where it is trained."""

    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; angles, biases, norms and scalars have none."""

    beta1: float = 0.9
    """Decay of the first moment."""

    beta2: float = 0.999
    """Decay of the second moment."""

    max_grad_norm: float = 1.0
    """Largest norm of all gradients together."""

    schedule: Schedule = "cosine"
    """Learning rate after the warm-up."""

    warmup: float = 0.05
    """Part of all steps in which the learning rate rises from 0."""

    balance: bool = False
    """Weigh positives of a label by negatives over positives of the training split, at most 20."""

    def __post_init__(self) -> None:
        if not self.epochs > 0:
            raise ConfigError(f"optim.epochs = {self.epochs}: needed more than 0")
        for name in ("max_steps", "micro_batch_size"):
            _at_least(f"optim.{name}", getattr(self, name), 0)
        _at_least("optim.batch_size", self.batch_size, 1)
        for name in ("head", "adapter", "theta", "backbone", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"optim.{name} = {getattr(self, name)}: needed 0 or more")
        for name in ("beta1", "beta2", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name} = {getattr(self, name)}: needed 0 to below 1")
        if not self.max_grad_norm > 0:
            raise ConfigError(f"optim.max_grad_norm = {self.max_grad_norm}: needed more than 0")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"optim.batch_size = {self.batch_size} is no multiple of optim.micro_batch_size = "
                f"{self.micro_batch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """What is measured, and when."""

    batch_size: int = 64
    """Images of one forward in one process."""

    every: float = 1.0
    """Epochs between evaluations on the validation split (and checkpoints)."""

    choose_best: bool = True
    """Keep the checkpoint with the best macro AUROC on the validation split, not the last."""

    untrained: bool = True
    """Evaluate the test split before training too."""

    calibrate: bool = True
    """Fit one temperature a label on the validation split."""

    bootstrap: int = 1000
    """Resamples of patients for intervals; 0 leaves intervals out."""

    confidence: float = 0.95
    """Coverage of intervals."""

    plots: bool = True
    """Draw ROC and learning curves into the run folder."""

    def __post_init__(self) -> None:
        _at_least("evaluation.batch_size", self.batch_size, 1)
        _at_least("evaluation.bootstrap", self.bootstrap, 0)
        if not self.every > 0:
            raise ConfigError(f"evaluation.every = {self.every}: needed more than 0 epochs")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"evaluation.confidence = {self.confidence}: needed 0 to 1, within")


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """The run itself."""

    seed: int = 0
    """Seed of weights, order, dropout and augmentation."""

    threads: int = 0
    """Threads of each process; 0 is all cores over the processes."""

    log_every: int = 10
    """Optimiser steps between lines of the log."""

    tensorboard: bool = True
    """Write TensorBoard logs into the run folder."""

    def __post_init__(self) -> None:
        _at_least("run.seed", self.seed, 0)
        _at_least("run.threads", self.threads, 0)
        _at_least("run.log_every", self.log_every, 1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    name: str
    """Begins the name of its run folder."""

    data: DataSection
    """One of `MimicData`, `ChestMnistData`, `FolderData`, by its `kind`."""

    image: ImageSpec
    """How image files become images; recorded in the bundle."""

    augmentation: Augmentation
    """Changes to training images."""

    backbone: BackboneSection
    """The model under the adapter."""

    adapter: QuasarConfig
    """The adapter and its objective."""

    head: HeadSection
    """Pooling."""

    optim: OptimSection
    """Optimiser and schedule."""

    evaluation: EvaluationSection
    """Metrics and calibration."""

    run: RunSection
    """Seed, threads, logs."""

    def __post_init__(self) -> None:
        size, tiny = self.image.size, self.backbone.tiny
        step = tiny.patch_size * tiny.merge_size
        if size is None:
            raise ConfigError("image.size is not given: batches need images of one size")
        if self.backbone.source == "tiny":
            if size % step:
                raise ConfigError(
                    f"image.size = {size} does not suit the tiny backbone: needed a multiple of "
                    f"{step} (patch times merge); {max(round(size / step), 1) * step} is nearest"
                )
            if self.adapter.blocks is None and self.adapter.every > tiny.decoder_layers:
                raise ConfigError(
                    f"adapter.every = {self.adapter.every} on a tiny backbone of "
                    f"{tiny.decoder_layers} layers leaves no layer adapted: needed at most "
                    f"{tiny.decoder_layers}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in TOML; `build_recipe` takes them back."""
        return {name: as_plain(getattr(self, name)) for name in self.__dataclass_fields__}


SECTIONS: Mapping[str, type] = {
    "image": ImageSpec,
    "augmentation": Augmentation,
    "backbone": BackboneSection,
    "adapter": QuasarConfig,
    "head": HeadSection,
    "optim": OptimSection,
    "evaluation": EvaluationSection,
    "run": RunSection,
}
"""Section -> its type; `data` depends on its `kind`."""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that are installed with the package."""
    folder = Path(str(files("medqua.train") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and put overrides on top.

    Args:
        source: Name of a shipped recipe, or a TOML file.
        overrides: `key=value`, the key dotted: `optim.epochs=5`, `data.views=AP,PA`.

    Returns:
        The recipe, checked.

    Raises:
        ConfigError: No such recipe, no TOML, an unknown key, a value of the wrong type, or
            values that contradict each other.
    """
    shipped = shipped_recipes()
    path = shipped.get(str(source), Path(source))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"no recipe {source}: give one of {', '.join(shipped)}, or a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    table.setdefault("name", path.stem)
    for override in overrides:
        _override(table, override)
    return build_recipe(table)


def build_recipe(table: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested tables of plain values.

    Raises:
        ConfigError: As `load_recipe`.
    """
    data = table.get("data", {})
    kind = str(data.get("kind", "")) if isinstance(data, Mapping) else ""
    if kind not in DATA_KINDS:
        raise ConfigError(f"data.kind = {kind!r}: needed one of {', '.join(DATA_KINDS)}")
    return build(Recipe, table, sections={"data": DATA_KINDS[kind], **SECTIONS})


def _override(table: dict[str, Any], override: str) -> None:
    """Put one `key=value` into nested tables."""
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(
            f"{override!r} is no override: write key=value, for instance optim.epochs=5"
        )
    for part in parts[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {part} is a value, not a section")
        table = inner
    table[parts[-1]] = Raw(value)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} = {value}: needed a whole number of at least {least}")
