"""A classifier that writes as well: one adapter and one backbone, two things read from them."""

from typing import Any

import torch
from torch import Tensor

from medqua.core.model.classifier import MedQuaClassifier, vision_language_model
from medqua.train.reports.writer import token_loss


class ReportWriter(MedQuaClassifier):
    """Findings from the visual tokens, and the loss of each token of a report behind them.

    The decoder is causal, so the report that is being learned cannot be seen from where the
    findings are read.
    """

    def forward(self, **inputs: Tensor) -> Any:
        """Score one batch of images, and the reports that go with them if there are any.

        Args:
            **inputs: What `build_inputs` returned, or `report_inputs` with its `labels` called
                `report`.

        Returns:
            Logits `[B, n_labels]`; with reports, these and `[B, R]` nats of the reports' tokens.
        """
        report = inputs.pop("report", None)
        if report is None:
            return super().forward(**inputs)
        model: Any = vision_language_model(self.backbone)
        hidden_states = model.base_model(**inputs, use_cache=False).last_hidden_state
        asked = inputs["attention_mask"].clone()
        asked[:, -report.shape[1] :] = 0
        pooled = self.pool(hidden_states, inputs["input_ids"] == self.image_token_id, asked)
        with torch.autocast(pooled.device.type, enabled=False):
            logits = self.head(pooled)
        return logits, token_loss(model, hidden_states, report)
