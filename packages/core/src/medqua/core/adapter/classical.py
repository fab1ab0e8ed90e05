"""The trained adapter with its quantum path taken away, to see what the path does."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from medqua.core.adapter.layer import QuasarBlock


@contextmanager
def classical_only(model: nn.Module) -> Iterator[None]:
    """Run the adapters of a model as if their routers had selected no token.

    `H_q` is zero everywhere and no circuit runs; gates, shadow and fusion are as trained. This is
    what a token that is not selected gets anyway, so nothing new is put in the path's place. An
    ablation of a trained model, for inference: it is no arm that was trained without the path.

    Args:
        model: Any model with Quasar adapters inside; one without any is left as it is.
    """
    blocks = [module for module in model.modules() if isinstance(module, QuasarBlock)]
    before = [block.quantum for block in blocks]
    for block in blocks:
        block.quantum = False
    try:
        yield
    finally:
        for block, was in zip(blocks, before, strict=True):
            block.quantum = was
