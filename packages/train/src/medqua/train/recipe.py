"""What a run is: typed recipes, from TOML and `key=value` overrides, refused before they start.

A recipe is a tree of frozen dataclasses. `load_recipe` reads one that is shipped
(`medqua/train/recipes/NAME.toml`) or a file of one's own, puts overrides such as `optim.epochs=5`
or `data.views=AP,PA` on top, and builds it; `recipe.to_dict()` goes into `run.json`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from medqua.core.adapter import QuasarConfig
from medqua.core.errors import ConfigError
from medqua.core.vision.image import ImageSpec
from medqua.train.data.augmentation import Augmentation
from medqua.train.data.sections import DATA_KINDS, DataSection
from medqua.train.experiment.section import ExperimentSection
from medqua.train.reports.section import ReportSection
from medqua.train.sections import (
    BackboneSection,
    EvaluationSection,
    HeadSection,
    OptimSection,
    RunSection,
)
from medqua.train.typed import Raw, as_plain, build


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

    experiment: ExperimentSection
    """What `reproduce` compares."""

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
            every = self.adapter.every if self.backbone.adapter == "quasar" else 1
            if self.adapter.blocks is None and every > tiny.decoder_layers:
                raise ConfigError(
                    f"adapter.every = {self.adapter.every} on a tiny backbone of "
                    f"{tiny.decoder_layers} layers leaves no layer adapted: needed at most "
                    f"{tiny.decoder_layers}"
                )
        self._check_arm()
        if self.run.parallel == "fsdp" and (self.backbone.quantize != "none" or self.run.prefix):
            what = "run.prefix" if self.run.prefix else "backbone.quantize"
            raise ConfigError(
                f"run.parallel = 'fsdp' with {what}: a model in parts is neither cut nor in 4 "
                "bits; choose run.parallel=ddp, which such a frozen backbone fits"
            )

    def _check_arm(self) -> None:
        """Refuse sections that contradict each other about what is attached and trained."""
        attached, lora = self.backbone.adapter, self.adapter.lora
        if attached == "lora" and lora is None:
            raise ConfigError(
                "backbone.adapter = 'lora' without adapter.lora: tell its rank, for instance "
                "adapter.lora.r=16"
            )
        if attached == "none" and lora is not None:
            raise ConfigError(
                "adapter.lora with backbone.adapter = 'none': choose 'lora' or 'quasar', or leave "
                "adapter.lora out"
            )
        if self.head.kind == "answers" and (attached != "none" or self.backbone.tune == "full"):
            raise ConfigError(
                f"head.kind = 'answers' with backbone.adapter = {attached!r} and backbone.tune = "
                f"{self.backbone.tune!r}: nothing is trained; set backbone.adapter=none and "
                "backbone.tune=head"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in TOML; `build_recipe` takes them back."""
        return {name: as_plain(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True)
class ReportRecipe(Recipe):
    """A run that learns to write reports: the recipe with a `[report]` section."""

    report: ReportSection
    """The texts, and how they are judged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, used in (
            ("data.kind", getattr(self.data, "kind", "") != "mimic"),
            ("run.parallel", self.run.parallel != "ddp"),
            ("run.prefix", bool(self.run.prefix)),
            ("evaluation.unit", self.evaluation.unit != "image"),
            ("evaluation.patience", self.evaluation.patience > 0),
            ("evaluation.bootstrap", self.evaluation.bootstrap < 1),
        ):
            if used:
                raise ConfigError(
                    f"{key} with [report]: reports need data.kind=mimic, run.parallel=ddp, no "
                    "run.prefix, evaluation.unit=image, evaluation.patience=0 and "
                    "evaluation.bootstrap of at least 1"
                )


SECTIONS: Mapping[str, type] = {
    "image": ImageSpec,
    "augmentation": Augmentation,
    "backbone": BackboneSection,
    "adapter": QuasarConfig,
    "head": HeadSection,
    "optim": OptimSection,
    "evaluation": EvaluationSection,
    "run": RunSection,
    "experiment": ExperimentSection,
    "report": ReportSection,
}
"""Section -> its type; `data` depends on its `kind`, and with `report` it is a `ReportRecipe`."""


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
    whole = ReportRecipe if "report" in table else Recipe
    return build(whole, table, sections={"data": DATA_KINDS[kind], **SECTIONS})


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
