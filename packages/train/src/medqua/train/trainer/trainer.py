"""transformers.Trainer with the paper's objective over the global batch, and its thresholds."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from medqua.core.adapter import regularisation, share_batch, update_thresholds
from medqua.core.errors import MedQuaError
from medqua.core.model.classifier import MedQuaClassifier
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.train.data.dataset import Collator, RadiographDataset, Sample
from medqua.train.data.manifest import IGNORED
from medqua.train.evaluation.metrics import macro_auroc
from medqua.train.evaluation.predict import predict, reset_routers, router_report
from medqua.train.processes import distributed
from medqua.train.processes.sharding import (
    is_sharded,
    load_optimizer_state,
    whole_optimizer_state,
    without_reduction,
)
from medqua.train.recipe import Recipe
from medqua.train.trainer.arguments import micro_batch_size, parameter_groups, training_arguments
from medqua.train.trainer.checkpoint import WEIGHTS, Checkpoints, load_trained_state, trained_state
from medqua.train.trainer.early import exhausted
from medqua.train.trainer.losses import TaskLoss
from medqua.train.trainer.order import EpochOrder
from medqua.train.trainer.stop import StopRequest

SHOTS = "shots.json"
"""How many times each circuit with seeded shots has been called."""

Log = Callable[[dict[str, float]], None]


class MedQuaTrainer(Trainer):
    """Trains a `MedQuaClassifier` by a recipe.

    Task loss plus Eq. 11 from the adapter; thresholds move by Eq. 6 after each optimiser step;
    evaluation sees each validation image once, whatever the number of processes. A step is a
    function of its global batch: the number of processes that share it changes nothing but
    rounding.

    Args:
        model: The classifier, sharded or not.
        recipe: The run.
        train: Training split.
        validate: Validation split.
        collator: Samples to batches.
        folder: Where checkpoints go.
        log: Called on rank 0 with every line of the log.
        say: Called on rank 0 with what a person should know.
        stuck: Called if a signal asks to stop and no step ends (see `StopRequest`).

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
        say: Callable[[str], None] = lambda _: None,
        stuck: Callable[[], None] = lambda: None,
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
        self.images = train
        self.validate = validate
        self.batches = collator
        self.unreadable: set[int] = set()
        self.write_log = log
        self.checkpoints = Checkpoints(folder, say)
        self.stop = StopRequest(stuck)
        self.order = EpochOrder(
            len(train),
            recipe.optim.batch_size,
            micro_batch_size(recipe),
            recipe.run.seed,
            distributed.rank(),
            distributed.world_size(),
        )
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the whole batch itself
        self.add_callback(_Steps(self))
        self.task_loss = TaskLoss.of(recipe.optim, train.labels, train.targets)
        share_batch(model)
        # sharded by `medqua.train.processes.sharding`: it places and reduces itself, DDP keeps off
        self.is_distributed_loading_by_transformers = is_sharded(model)

    def get_train_dataloader(self) -> DataLoader[Sample]:
        """This process's part of every global batch."""
        return DataLoader(
            self.images,
            batch_sampler=self.order,
            collate_fn=self.batches,
            num_workers=self.recipe.data.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Known labels of an optimiser step, over its micro-batches and all processes."""
        known = sum((batch["labels"] != IGNORED).sum() for batch in batch_samples)
        total = torch.as_tensor(known, dtype=torch.float64, device=device)
        if distributed.world_size() > 1:
            dist.all_reduce(total)
        return total.clamp(min=1).float()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's part of the task loss and of the regularisation (Eq. 11).

        Summed over micro-batches and averaged over processes, as DDP and the log do, parts give
        the loss of the global batch.
        """
        inputs = dict(inputs)
        targets, index, readable = (inputs.pop(name) for name in ("labels", "index", "readable"))
        self.unreadable.update(index[~readable].tolist())
        logits = model(**inputs)
        task = self.task_loss(logits, targets, num_items_in_batch)
        if num_items_in_batch is not None:
            task = task * distributed.world_size()
        loss = task + regularisation(self.classifier) / self.current_gradient_accumulation_steps
        return (loss, logits) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the recipe's learning rate for each part."""
        if self.optimizer is None:
            optim = self.recipe.optim
            self.optimizer = torch.optim.AdamW(
                parameter_groups(self.classifier, self.recipe), betas=(optim.beta1, optim.beta2)
            )
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip, and refuse a step that would make weights NaN; equal on all processes."""
        norm: Tensor = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if not math.isfinite(norm.item()):
            raise MedQuaError(
                f"the loss or its gradient is {norm.item()} at step {self.state.global_step + 1}, "
                "which was not taken: lower the learning rates under optim, or "
                "optim.max_grad_norm, in a new run; checkpoints before it are whole"
            )
        return norm

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
            for layer, values in router_report(self.classifier).items():
                for name, value in values.items():
                    if value is not None:
                        logs[f"router/{layer}/{name}"] = value
            reset_routers(self.classifier)
        super().log(logs, start_time)
        if distributed.is_main():
            self.write_log({**self.state.log_history[-1]})

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write everything that a resumed run needs to go on bit for bit."""
        step = self.state.global_step
        weights = trained_state(self.classifier)
        optimizer, schedule = self._optimizer_state(), self._schedule.state_dict()
        if self.state.best_global_step:
            best = self.checkpoints.path(self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)
        with self.checkpoints.writing(step) as folder:
            self._save_rng_state(str(folder))
            if self.args.should_save:
                save_file(weights, folder / WEIGHTS)
                torch.save(optimizer, folder / "optimizer.pt")
                torch.save(schedule, folder / "scheduler.pt")
                (folder / SHOTS).write_text(json.dumps(self._shots()), "utf-8")
                controls: Any = self.state.stateful_callbacks
                controls["TrainerControl"] = self.control.state()
                self.state.save_to_json(str(folder / "trainer_state.json"))
        self.checkpoints.remove_old(self.state.best_global_step)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        load_trained_state(self.classifier, folder)
        calls = json.loads((folder / SHOTS).read_text("utf-8"))
        for name, module in self._circuits():
            module.calls = calls.get(name, 0)

    def _load_best_model(self) -> None:
        step = self.state.best_global_step
        if step and self.checkpoints.is_whole(step):
            load_trained_state(self.classifier, self.checkpoints.path(step))
        elif step:
            raise MedQuaError(
                f"the best checkpoint, of step {step}, is damaged: remove "
                f"{self.checkpoints.path(step)} and go on with --resume, which then chooses the "
                "best of those that are left"
            )

    def _optimizer_state(self) -> dict[str, Any]:
        """Moments of all trained parameters, whole; all processes take part if it is sharded."""
        optimizer = _bare(self.optimizer)
        if is_sharded(self.classifier):
            return whole_optimizer_state(self.classifier, optimizer)
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if is_sharded(self.classifier):
            state = torch.load(Path(checkpoint) / "optimizer.pt", map_location="cpu")
            load_optimizer_state(self.classifier, _bare(self.optimizer), state)
            self._schedule.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt"))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    @property
    def _schedule(self) -> torch.optim.lr_scheduler.LambdaLR:
        if self.lr_scheduler is None:
            raise MedQuaError("there is no schedule before training")
        return self.lr_scheduler

    def _circuits(self) -> Iterator[tuple[str, VariationalBottleneck]]:
        for name, module in self.classifier.named_modules():
            if isinstance(module, VariationalBottleneck) and module.seed is not None:
                yield name, module

    def _shots(self) -> dict[str, int]:
        return {name: module.calls for name, module in self._circuits()}

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Nothing: `shard` has seen to the parameters that are not in parts."""

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        with without_reduction(self.classifier):
            yield


class _Steps(TrainerCallback):
    """What happens around each step, equal on every process."""

    def __init__(self, trainer: MedQuaTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Draw apart from the other processes; forget a best checkpoint that is gone."""
        if distributed.rank():
            set_seed(self.trainer.recipe.run.seed + 1_000_003 * distributed.rank())
        best = state.best_global_step
        if best and self.trainer.checkpoints.is_whole(best):
            state.best_model_checkpoint = str(self.trainer.checkpoints.path(best))
        elif best:
            state.best_global_step = state.best_metric = state.best_model_checkpoint = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Tell order and augmentation the epoch, also where a run resumes within one."""
        epoch = state.global_step // self.trainer.order.steps
        self.trainer.order.set_epoch(epoch)
        self.trainer.images.set_epoch(epoch)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Eq. 6."""
        update_thresholds(self.trainer.classifier)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Save where the recipe wants it, and stop together."""
        self.trainer.stop.heard()
        self._stop_early(state, control)
        every = self.trainer.recipe.run.checkpoint_every
        if every and state.global_step % every == 0:
            control.should_save = True
        if distributed.any_rank(self.trainer.stop.wanted, args.device):
            self.trainer.stop.wanted = True
            control.should_training_stop = control.should_save = True
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Stop where the recipe's patience ends."""
        self._stop_early(state, control)
        return control

    def _stop_early(self, state: TrainerState, control: TrainerControl) -> None:
        evaluation = self.trainer.recipe.evaluation
        if exhausted(state.log_history, evaluation.patience, evaluation.min_delta):
            control.should_training_stop = True


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside of what accelerate makes of it."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
