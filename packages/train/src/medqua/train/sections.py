"""The sections of a recipe that tell the model and its training."""

from dataclasses import dataclass, field
from typing import Literal

from medqua.core.errors import ConfigError
from medqua.core.model.classifier import POOLINGS
from medqua.core.model.tiny import TinyArchitecture
from medqua.train.evaluation.pooling import StudyPool
from medqua.train.typed import at_least

Attached = Literal["quasar", "lora", "none"]
Tune = Literal["auto", "adapter", "full", "head"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "linear", "constant"]
Loss = Literal["bce", "focal"]
Unit = Literal["image", "study"]
Parallel = Literal["ddp", "fsdp"]
Quantize = Literal["none", "nf4"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
Shared = Literal["plots", "paths"]


@dataclass(frozen=True, kw_only=True)
class BackboneSection:
    """The vision-language model under the adapter."""

    source: str = "tiny"
    """Hub id, folder, `tiny-cxr` (small, pretrained on phantoms) or `tiny` (small, random)."""

    revision: str = ""
    """Branch, tag or commit on the hub; empty is its main branch."""

    dtype: Precision = "float32"
    """Type of its weights; the adapter and the head are float32 always."""

    quantize: Quantize = "none"
    """`nf4` keeps the matrices of a frozen backbone in 4 bits (QLoRA), a quarter of bfloat16;
    needs `medqua-train[qlora]`."""

    adapter: Attached = "quasar"
    """What is attached to its decoder: the adapter of `[adapter]`, with LoRA beside it where
    `adapter.lora` is given; the LoRA of `adapter.lora` alone; or nothing."""

    tune: Tune = "auto"
    """What is trained beside the head; `auto` is `full` for `tiny`, and for others `adapter`, or
    `head` where there is none."""

    prompt: str = "Name the findings in this frontal chest radiograph."
    """Text before the image."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    tiny: TinyArchitecture = field(default_factory=TinyArchitecture)
    """Sizes of the tiny model."""

    def __post_init__(self) -> None:
        if self.tune == "adapter" and self.adapter == "none":
            raise ConfigError(
                "backbone.tune = 'adapter' with backbone.adapter = 'none': there is none to train; "
                "choose full or head, or an adapter"
            )

        if self.quantize != "none" and self.tuned == "full":
            raise ConfigError(
                f"backbone.quantize = {self.quantize!r} with backbone.tune = {self.tune!r}: "
                "weights in 4 bits cannot be trained; choose adapter or head"
            )

    @property
    def tuned(self) -> Literal["adapter", "full", "head"]:
        """What is trained, with `auto` decided."""
        if self.tune != "auto":
            return self.tune
        if self.source == "tiny":
            return "full"
        return "head" if self.adapter == "none" else "adapter"


@dataclass(frozen=True, kw_only=True)
class HeadSection:
    """From hidden states to logits."""

    kind: Literal["linear", "answers"] = "linear"
    """A trained linear layer, or the language head's own answers to a question about each finding,
    where nothing is trained (zero-shot)."""

    pooling: Literal["visual_mean", "last_token"] = "visual_mean"
    """What the linear head reads."""

    question: str = "Is there {finding} in this chest radiograph? Answer yes or no."
    """What `answers` asks, with the finding's name in the place of `{finding}`."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError(f"head.pooling = {self.pooling!r}: needed one of {POOLINGS}")
        if "{finding}" not in self.question:
            raise ConfigError(
                f"head.question = {self.question!r}: needed {{finding}} where the finding's name "
                "belongs"
            )


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
    """Learning rate of router, shadow and projections, and of LoRA."""

    theta: float = 1e-2
    """Learning rate of the circuit's rotation angles, in radians a step, and of the parameters of
    what stands in its place."""

    backbone: float = 1e-3
    """Learning rate of the backbone, where it is trained."""

    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; the bottleneck, biases, norms and scalars have none."""

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

    loss: Loss = "bce"
    """Binary cross-entropy, or the focal loss, in which labels that are easy weigh less."""

    gamma: float = 2.0
    """Exponent of the focal loss; 0 is cross-entropy."""

    label_weights: dict[str, float] = field(default_factory=dict)
    """Factor on the loss of a label, by its name: `{Hernia = 5.0}`; 1 for those not named."""

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ConfigError(f"optim.gamma = {self.gamma}: needed 0 or more")
        if self.loss == "bce" and self.gamma != 2.0:
            raise ConfigError(
                f"optim.gamma = {self.gamma} with optim.loss = 'bce': it is the focal loss's; set "
                "optim.loss=focal"
            )
        for name, weight in self.label_weights.items():
            if not weight > 0:
                raise ConfigError(f"optim.label_weights.{name} = {weight}: needed more than 0")
        if not self.epochs > 0:
            raise ConfigError(f"optim.epochs = {self.epochs}: needed more than 0")
        for name in ("max_steps", "micro_batch_size"):
            at_least(f"optim.{name}", getattr(self, name), 0)
        at_least("optim.batch_size", self.batch_size, 1)
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

    patience: int = 0
    """Evaluations without a better macro AUROC on the validation split after which training stops
    early; 0 trains to the end."""

    min_delta: float = 0.0
    """By how much a macro AUROC must exceed the best so far to count as better."""

    untrained: bool = True
    """Evaluate the test split before training too."""

    calibrate: bool = True
    """Fit one temperature a label on the validation split."""

    bootstrap: int = 1000
    """Resamples of patients for intervals; 0 leaves intervals out."""

    unit: Unit = "image"
    """What figures count: images, or studies, whose images are pooled. The checkpoint is chosen,
    and temperatures are fitted, by images."""

    study_pool: StudyPool = "mean"
    """Pooling of the logits of a study's images."""

    confidence: float = 0.95
    """Coverage of intervals."""

    plots: bool = True
    """Draw ROC, reliability and learning curves into the run folder."""

    def __post_init__(self) -> None:
        at_least("evaluation.batch_size", self.batch_size, 1)
        at_least("evaluation.bootstrap", self.bootstrap, 0)
        at_least("evaluation.patience", self.patience, 0)
        if not 0 <= self.min_delta < 1:
            raise ConfigError(f"evaluation.min_delta = {self.min_delta}: needed 0 to below 1")
        if self.patience and not self.choose_best:
            raise ConfigError(
                f"evaluation.patience = {self.patience} with evaluation.choose_best = false: a run "
                "that stops early keeps its best checkpoint; leave choose_best on"
            )
        if self.min_delta and not self.patience:
            raise ConfigError(
                f"evaluation.min_delta = {self.min_delta} without evaluation.patience: set it to "
                "the evaluations to wait"
            )
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

    parallel: Parallel = "ddp"
    """How several processes hold the model: each all of it (`ddp`), or each a part (`fsdp`), for a
    backbone too large for one device."""

    checkpoint_every: int = 0
    """Optimiser steps between checkpoints, beside those of evaluations; 0 is those alone."""

    timeout: float = 1800.0
    """Seconds after which waiting for another process is an error."""

    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Who is told the log and the figures: `tensorboard` (into the run folder), `wandb`
    (`medqua-train[wandb]`), `mlflow` (`medqua-train[mlflow]`), several by comma; `[]` is nobody."""

    project: str = "medqua"
    """W&B project, or MLflow experiment."""

    share: tuple[Shared, ...] = ()
    """What trackers other than TensorBoard are given beside figures and settings: `plots`, the
    pictures of the run, and `paths`, the settings that tell where files are."""

    prefix: str = ""
    """Folder for what the frozen layers answer to each image, computed once and shared by runs; no
    augmentation then. Empty runs the whole model every time."""

    def __post_init__(self) -> None:
        at_least("run.seed", self.seed, 0)
        at_least("run.threads", self.threads, 0)
        at_least("run.log_every", self.log_every, 1)
        at_least("run.checkpoint_every", self.checkpoint_every, 0)
        if not self.project:
            raise ConfigError("run.project is empty: name the project or experiment")
        if not self.timeout > 0:
            raise ConfigError(f"run.timeout = {self.timeout}: needed more than 0 seconds")
