"""A recipe in the terms of transformers: arguments of its trainer, groups of its optimiser."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from medqua.core.errors import ConfigError
from medqua.core.model.classifier import MedQuaClassifier
from medqua.train.processes import distributed
from medqua.train.recipe import Recipe


def micro_batch_size(recipe: Recipe) -> int:
    """Images of one forward in one process.

    Raises:
        ConfigError: A batch that the processes cannot share.
    """
    optim, processes = recipe.optim, distributed.world_size()
    micro = optim.micro_batch_size or max(1, optim.batch_size // processes)
    if optim.batch_size % (micro * processes):
        raise ConfigError(
            f"optim.batch_size = {optim.batch_size} cannot be shared by {processes} processes with "
            f"{micro} images each: needed a multiple of {micro * processes}"
        )
    return micro


def training_arguments(recipe: Recipe, n_images: int, folder: Path) -> TrainingArguments:
    """Translate a recipe for transformers.

    Raises:
        ConfigError: A batch that the processes cannot share.
    """
    optim, evaluation = recipe.optim, recipe.evaluation
    micro = micro_batch_size(recipe)
    steps_an_epoch = max(1, math.ceil(n_images / optim.batch_size))
    every = max(1, round(evaluation.every * steps_an_epoch))
    total = optim.max_steps or math.ceil(optim.epochs * steps_an_epoch)
    transformers_logging.set_verbosity_warning()  # type: ignore[no-untyped-call]
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=optim.batch_size // (micro * distributed.world_size()),
        num_train_epochs=optim.epochs,
        max_steps=total,
        max_grad_norm=optim.max_grad_norm,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(optim.schedule, optim.schedule),
        warmup_steps=math.ceil(optim.warmup * total),
        eval_strategy="steps",
        eval_steps=min(every, total),
        save_strategy="steps",
        save_steps=min(every, total),
        load_best_model_at_end=evaluation.choose_best,
        metric_for_best_model="macro_auroc",
        greater_is_better=True,
        logging_steps=recipe.run.log_every,
        logging_nan_inf_filter=False,
        seed=recipe.run.seed,
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
            parts = [p for p in members if isinstance(p, DTensor)]
            whole = [p for p in members if not isinstance(p, DTensor)]
            groups += [  # one kernel cannot take both
                {"params": kind, "lr": rate, "weight_decay": decay}
                for kind in (parts, whole)
                if kind
            ]
    return groups
