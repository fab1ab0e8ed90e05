"""The trainer with a text to learn beside the findings, both over the global batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from medqua.core.adapter import regularisation
from medqua.core.errors import ShapeError
from medqua.core.model.classifier import MedQuaClassifier
from medqua.train.data.dataset import Collator, RadiographDataset, Sample
from medqua.train.data.manifest import IGNORED
from medqua.train.evaluation.metrics import macro_auroc
from medqua.train.evaluation.predict import reset_routers
from medqua.train.processes import distributed
from medqua.train.recipe import ReportRecipe
from medqua.train.reports.writer import append_reports
from medqua.train.trainer.losses import TaskLoss
from medqua.train.trainer.trainer import MedQuaTrainer


@dataclass(frozen=True)
class ReportCollator(Collator):
    """Samples of one split to batches with their reports."""

    reports: Sequence[str] = field(kw_only=True)
    """The report of each image of the split."""

    max_tokens: int = field(kw_only=True)
    """Where reports are cut."""

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As `Collator`, with the report's tokens in `report`, ignored where there is no image."""
        batch = super().__call__(samples)
        kept = {name: batch.pop(name) for name in ("labels", "index", "readable")}
        texts = [self.reports[sample["index"]] for sample in samples]
        inputs = append_reports(self.processor, batch, texts, self.max_tokens)
        report = inputs.pop("labels").masked_fill(~kept["readable"][:, None], IGNORED)
        return inputs | kept | {"report": report}


class ReportTrainer(MedQuaTrainer):
    """`MedQuaTrainer` with the cross-entropy of the report's tokens; it chooses by that.

    The text's part is the mean over the tokens of the global batch, the findings' part is
    `report.findings_weight` times the task loss, and Eq. 11 is added.

    Args:
        model: A `ReportWriter`.
        recipe: A `ReportRecipe`.
        train: Training split.
        validate: Validation split.
        collator: Of the training split.
        folder: Where checkpoints go.
        *rest: As `MedQuaTrainer`.
        judged: Collator of the validation split.
    """

    def __init__(
        self,
        model: MedQuaClassifier,
        recipe: ReportRecipe,
        train: RadiographDataset,
        validate: RadiographDataset,
        collator: ReportCollator,
        folder: Path,
        *rest: Any,
        judged: ReportCollator,
    ) -> None:
        if len(collator.reports) != len(train) or len(judged.reports) != len(validate):
            raise ShapeError("needed a report for each image of train and validate")
        super().__init__(model, recipe, train, validate, collator, folder, *rest)
        self.judged = judged
        self.findings_weight = recipe.report.findings_weight
        self.tokens = torch.ones(())
        self.args.metric_for_best_model = "eval_report_loss"
        self.args.greater_is_better = False

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Known labels of an optimiser step; its report tokens are kept in `tokens`."""
        tokens = sum((batch["report"] != IGNORED).sum() for batch in batch_samples)
        total = torch.as_tensor(tokens, dtype=torch.float64, device=device)
        if distributed.world_size() > 1:
            dist.all_reduce(total)
        self.tokens = total.clamp(min=1).float()
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's part of both losses and of the regularisation (Eq. 11)."""
        inputs = dict(inputs)
        targets, index, readable = (inputs.pop(name) for name in ("labels", "index", "readable"))
        self.unreadable.update(index[~readable].tolist())
        logits, tokens = model(**inputs)
        findings = self.task_loss(logits, targets, num_items_in_batch)
        if num_items_in_batch is None:
            text = tokens.sum() / (inputs["report"] != IGNORED).sum().clamp(min=1)
            both = text + self.findings_weight * findings
        else:
            text = tokens.sum() / self.tokens
            both = (text + self.findings_weight * findings) * distributed.world_size()
        loss = both + regularisation(self.classifier) / self.current_gradient_accumulation_steps
        return (loss, logits) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Nats a token, macro AUROC and loss of the validation split, equal on every process."""
        reset_routers(self.classifier)
        evaluation, data = self.recipe.evaluation, self.recipe.data
        found = score_reports(
            self.classifier,
            self.validate,
            self.judged,
            batch_size=evaluation.batch_size,
            workers=data.workers,
        )
        reset_routers(self.classifier)
        auroc = macro_auroc(found.logits, found.targets)
        targets = torch.from_numpy(found.targets).float()
        metrics = {
            f"{metric_key_prefix}_macro_auroc": float("nan") if auroc is None else auroc,
            f"{metric_key_prefix}_loss": float(TaskLoss()(torch.from_numpy(found.logits), targets)),
            f"{metric_key_prefix}_report_loss": found.nats_a_token,
        }
        self.log(dict(metrics))
        # says that it is done; without it the end of the epoch would evaluate again
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


@dataclass(frozen=True)
class Scored:
    """What a writer gives to the images of a split and to the reports that go with them."""

    logits: np.ndarray
    """`[N, L]` of the findings."""
    targets: np.ndarray
    """`[N, L]`, all ignored where there is no image."""
    nats: np.ndarray
    """`[N]`, of all tokens of each report."""
    tokens: np.ndarray
    """`[N]`, their number; 0 where there is no image."""

    @property
    def nats_a_token(self) -> float:
        """Mean over the tokens of all reports."""
        return float(self.nats.sum() / max(self.tokens.sum(), 1))


@torch.no_grad()
def score_reports(
    model: nn.Module,
    dataset: RadiographDataset,
    collator: ReportCollator,
    *,
    batch_size: int,
    workers: int = 0,
) -> Scored:
    """Run a `ReportWriter` over a split and its reports, each once, over all processes.

    Args:
        model: Not wrapped; left in the mode that it was in.
        dataset: The split.
        collator: With its reports.
        batch_size: Images of one forward.
        workers: Processes that read images.
    """
    device = next(model.parameters()).device
    processes = distributed.world_size()
    mine = range(distributed.rank(), len(dataset), processes)
    loader: DataLoader[Sample] = DataLoader(
        Subset(dataset, mine), batch_size=batch_size, collate_fn=collator, num_workers=workers
    )
    was_training = model.training
    model.eval()
    found: list[tuple[np.ndarray, ...]] = []
    try:
        for batch in loader:
            targets = batch.pop("labels").to(torch.int8).numpy()
            for name in ("index", "readable"):
                batch.pop(name)
            logits, nats = model(**{name: value.to(device) for name, value in batch.items()})
            counts = (batch["report"] != IGNORED).sum(1).numpy()
            found.append(
                (logits.double().cpu().numpy(), targets, nats.double().sum(1).cpu().numpy(), counts)
            )
    finally:
        model.train(was_training)
    n_labels = dataset.targets.shape[1]
    whole: list[np.ndarray] = [
        np.zeros((len(dataset), n_labels)),
        np.full((len(dataset), n_labels), IGNORED, np.int8),
        np.zeros(len(dataset)),
        np.zeros(len(dataset), np.int64),
    ]
    for number, parts in enumerate(distributed.gather(found)):
        if parts:
            for into, column in zip(whole, zip(*parts, strict=True), strict=True):
                into[number::processes] = np.concatenate(column)
    return Scored(*whole)
