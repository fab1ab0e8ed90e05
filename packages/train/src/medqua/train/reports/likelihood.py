"""How likely each text of a gallery is, given each image."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from transformers import ProcessorMixin

from medqua.core.model.classifier import MedQuaClassifier, vision_language_model
from medqua.core.vision.processor import build_inputs
from medqua.train.processes import distributed
from medqua.train.reports.writer import append_reports, token_loss


@torch.no_grad()
def text_nats(
    classifier: MedQuaClassifier,
    processor: ProcessorMixin,
    images: Sequence[np.ndarray],
    prompt: str,
    texts: Sequence[str],
    *,
    max_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Float64[np.ndarray, "n m"]:
    """-log p(text | image) of every pair, in nats, over all processes.

    Args:
        classifier: With the backbone that writes; left in the mode that it was in.
        processor: The backbone's.
        images: N grey images of one size.
        prompt: Text before the image, as in training.
        texts: M texts.
        max_tokens: A text and its end are cut to this many tokens, as in training.
        batch_size: Texts of one forward; an image's batch is made once and repeated.
        advance: Called with the number of images done.

    Returns:
        `[N, M]`, the same on every process.
    """
    model: Any = vision_language_model(classifier.backbone)
    device = next(model.parameters()).device
    processes = distributed.world_size()
    # texts of like length together: less padding
    order = np.argsort([len(text) for text in texts], kind="stable")
    blocks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    mine = range(distributed.rank(), len(images), processes)
    own = np.zeros((len(mine), len(texts)))
    was_training = model.training
    model.eval()
    try:
        for row, number in enumerate(mine):
            asked = build_inputs(processor, [images[number]], prompt)
            for block in blocks:
                many = {k: v.repeat(len(block), *[1] * (v.dim() - 1)) for k, v in asked.items()}
                some = [texts[i] for i in block]
                inputs = append_reports(processor, many, some, max_tokens)
                inputs = {name: value.to(device) for name, value in inputs.items()}
                report = inputs.pop("labels")
                hidden_states = model.base_model(**inputs, use_cache=False).last_hidden_state
                each = token_loss(model, hidden_states, report).double().sum(1)
                own[row, block] = each.cpu().numpy()
            advance(processes)
    finally:
        model.train(was_training)
    result = np.zeros((len(images), len(texts)))
    for number, part in enumerate(distributed.gather(own)):
        result[number::processes] = part
    return result
