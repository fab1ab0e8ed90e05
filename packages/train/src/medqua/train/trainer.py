"""transformers.Trainer with the paper's objective, thresholds, and checkpoints that are whole."""

import math
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from medqua.core.adapter import regularisation, update_thresholds
from medqua.core.errors import ConfigError, DataError, MedQuaError
from medqua.core.model.classifier import MedQuaClassifier
from medqua.train import distributed
from medqua.train.data.dataset import Collator, RadiographDataset
from medqua.train.data.manifest import IGNORED
from medqua.train.losses import TaskLoss
from medqua.train.metrics import macro_auroc
from medqua.train.predict import predict, reset_routers, router_report
from medqua.train.recipe import Recipe

WEIGHTS = "model.safetensors"
"""Trained weights and buffers of a checkpoint; frozen ones are the backbone's."""

COMPLETE = "complete"
"""Empty file that is written last into a checkpoint."""

Log = Callable[[dict[str, float]], None]


class MedQuaTrainer(Trainer):
    """Trains a `MedQuaClassifier` by a recipe.

    Task loss plus Eq. 11 from the adapter; thresholds move by Eq. 6 after each optimiser step;
    evaluation sees each validation image once, whatever the number of processes.

    Args:
        model: The classifier.
        recipe: The run.
        train: Training split.
        validate: Validation split.
        collator: Samples to batches.
        folder: Where checkpoints go.
        log: Called on rank 0 with every line of the log.

    Raises:
        ConfigError: A batch that the processes cannot share.
    """

    def __init__(
        self,
        model: MedQuaClassifier,
        recipe: Recipe,
        train: RadiographDataset,
        validate: RadiographDataset,
        collator: Collator,
        folder: Path,
        log: Log = lambda _: None,
    ) -> None:
        super().__init__(
            model=model,
            args=training_arguments(recipe, len(train), folder),
            data_collator=collator,
            train_dataset=train,
            eval_dataset=validate,
        )
        for unwanted in (PrinterCallback, ProgressCallback):
            self.remove_callback(unwanted)
        self.recipe = recipe
        self.classifier = model
        self.validate = validate
        self.batches = collator
        self.unreadable: set[int] = set()
        self.write_log = log
        self.stop = StopRequest()
        self.add_callback(_Thresholds(self))
        self.task_loss = TaskLoss.of(recipe.optim, train.labels, train.targets)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Task loss plus the adapter's regularisation (Eq. 11)."""
        inputs = dict(inputs)
        targets, index, readable = (inputs.pop(name) for name in ("labels", "index", "readable"))
        self.unreadable.update(index[~readable].tolist())
        logits = model(**inputs)
        loss = self.task_loss(logits, targets) + regularisation(self.classifier)
        return (loss, logits) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the recipe's learning rate for each part."""
        if self.optimizer is None:
            optim = self.recipe.optim
            self.optimizer = torch.optim.AdamW(
                parameter_groups(self.classifier, self.recipe), betas=(optim.beta1, optim.beta2)
            )
        return self.optimizer

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Macro AUROC and loss of the validation split, equal on every process."""
        reset_routers(self.classifier)
        evaluation, data = self.recipe.evaluation, self.recipe.data
        found = predict(
            self.classifier,
            self.validate,
            self.batches,
            batch_size=evaluation.batch_size,
            workers=data.workers,
        )
        reset_routers(self.classifier)
        targets = self.validate.targets.copy()
        targets[list(found.unreadable)] = IGNORED
        auroc = macro_auroc(found.logits, targets)
        loss = TaskLoss()(torch.from_numpy(found.logits), torch.from_numpy(targets).float())
        metrics = {
            f"{metric_key_prefix}_macro_auroc": float("nan") if auroc is None else auroc,
            f"{metric_key_prefix}_loss": float(loss),
        }
        self.log(dict(metrics))
        # says that it is done; without it the end of the epoch would evaluate again
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the routers' state to each line of the training log, and hand it on."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise MedQuaError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: lower the "
                    "learning rates under optim, or optim.max_grad_norm, and resume"
                )
            for layer, values in router_report(self.classifier).items():
                for name, value in values.items():
                    if value is not None:
                        logs[f"router/{layer}/{name}"] = value
            reset_routers(self.classifier)
        super().log(logs, start_time)
        if distributed.is_main():
            self.write_log({**self.state.log_history[-1]})

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write what is trained, and every buffer, as safetensors."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_trained_state(self.classifier), folder / WEIGHTS)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, then the file that says it is whole."""
        super()._save_checkpoint(model, trial)
        distributed.gather(None)  # every rank has written its random state
        if self.args.should_save:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            (folder / COMPLETE).touch()

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_trained_state(self.classifier, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            load_trained_state(self.classifier, Path(self.state.best_model_checkpoint))


class StopRequest:
    """A wish to stop after the current optimiser step, with a checkpoint."""

    def __init__(self) -> None:
        self.wanted = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM ask to stop; a second Ctrl-C stops at once."""
        previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: FrameType | None) -> None:
            if self.wanted and number == signal.SIGINT and distributed.world_size() == 1:
                raise KeyboardInterrupt
            self.wanted = True

        for number in previous:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Thresholds(TrainerCallback):
    """Eq. 6 after each optimiser step; stops together with the other processes."""

    def __init__(self, trainer: MedQuaTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        update_thresholds(self.trainer.classifier)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if distributed.any_rank(self.trainer.stop.wanted, args.device):
            self.trainer.stop.wanted = True
            control.should_training_stop = control.should_save = True
        return control


def training_arguments(recipe: Recipe, n_images: int, folder: Path) -> TrainingArguments:
    """Translate a recipe for transformers.

    Raises:
        ConfigError: A batch that the processes cannot share.
    """
    optim, evaluation = recipe.optim, recipe.evaluation
    processes = distributed.world_size()
    micro = optim.micro_batch_size or max(1, optim.batch_size // processes)
    if optim.batch_size % (micro * processes):
        raise ConfigError(
            f"optim.batch_size = {optim.batch_size} cannot be shared by {processes} processes with "
            f"{micro} images each: needed a multiple of {micro * processes}"
        )
    steps_an_epoch = max(1, math.ceil(n_images / optim.batch_size))
    every = max(1, round(evaluation.every * steps_an_epoch))
    total = optim.max_steps or math.ceil(optim.epochs * steps_an_epoch)
    transformers_logging.set_verbosity_warning()  # type: ignore[no-untyped-call]
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=optim.batch_size // (micro * processes),
        num_train_epochs=optim.epochs,
        max_steps=total,
        max_grad_norm=optim.max_grad_norm,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(optim.schedule, optim.schedule),
        warmup_steps=math.ceil(optim.warmup * total),
        eval_strategy="steps",
        eval_steps=min(every, total),
        save_strategy="steps",
        save_steps=min(every, total),
        save_total_limit=2,
        load_best_model_at_end=evaluation.choose_best,
        metric_for_best_model="macro_auroc",
        greater_is_better=True,
        logging_steps=recipe.run.log_every,
        logging_nan_inf_filter=False,
        seed=recipe.run.seed,
        dataloader_num_workers=recipe.data.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        report_to="none",
        disable_tqdm=True,
    )


def parameter_groups(model: MedQuaClassifier, recipe: Recipe) -> list[dict[str, Any]]:
    """Parts of the model with learning rates of their own; only matrices decay."""
    optim = recipe.optim
    rates = {"backbone": optim.backbone, "adapter": optim.adapter, "head": optim.head}
    # controls in the circuit's place are trained as it is: same rate, no decay
    inside = re.compile(r"\.quasar_block\..*\.bottleneck\.")
    angles = {id(p) for name, p in model.named_parameters() if inside.search(name)}
    groups: list[dict[str, Any]] = []
    for part, parameters in model.parameter_groups().items():
        theta = [p for p in parameters if id(p) in angles]
        matrices = [p for p in parameters if id(p) not in angles and p.dim() > 1]
        others = [p for p in parameters if id(p) not in angles and p.dim() <= 1]
        for members, rate, decay in (
            (matrices, rates[part], optim.weight_decay),
            (others, rates[part], 0.0),
            (theta, optim.theta, 0.0),
        ):
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": decay})
    return groups


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those that are not are removed.

    Args:
        folder: `trainer_state` of a run.
    """
    whole: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            whole.append((int(path.name.rpartition("-")[2]), path))
        elif distributed.is_main():
            shutil.rmtree(path, ignore_errors=True)
    return max(whole)[1] if whole else None


def _trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained, and all persistent buffers, on the CPU."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: b for name, b in model.state_dict().items() if name not in parameters}
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in {**trained, **buffers}.items()
    }


def load_trained_state(model: nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint into the model that it was made from.

    Args:
        model: The classifier.
        folder: A checkpoint.

    Raises:
        DataError: The checkpoint is of another model or recipe.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise DataError(f"no {WEIGHTS} in {folder}: it is no checkpoint of MedQua")
    state, needed = load_file(path), _trained_state(model)
    wrong = sorted(
        name
        for name in state.keys() | needed.keys()
        if name not in state or name not in needed or state[name].shape != needed[name].shape
    )
    if wrong:
        raise DataError(
            f"{path} is of another model: {len(wrong)} tensors differ, among them {wrong[0]}; "
            "resume with the recipe that it was made by"
        )
    model.load_state_dict(state, strict=False)
