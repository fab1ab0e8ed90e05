"""The `[report]` section of a recipe: the texts, how they are learned, and how they are judged."""

from dataclasses import dataclass
from typing import Literal

from medqua.core.errors import ConfigError
from medqua.train.typed import at_least

Part = Literal["findings", "impression"]


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """Reports as the model's own next words."""

    root: str = ""
    """Folder with the reports' `files/`, or `mimic-cxr-reports.zip`; empty is `data.root`."""

    sections: tuple[Part, ...] = ("findings",)
    """Sections to join. Studies with none of them take no part."""

    max_tokens: int = 160
    """Tokens of a report with its end; longer ones are cut, in learning and in writing."""

    findings_weight: float = 1.0
    """Weight of the classifier's loss on the findings beside that of the text, which has 1; 0
    learns from the text alone."""

    gallery: int = 100
    """Studies of the test split whose reports and images are ranked against each other, chosen by
    a hash; 0 is all. The cost grows with its square."""

    references: int = 8
    """Training images over which the likelihood of a text without its image is averaged."""

    def __post_init__(self) -> None:
        if not self.sections or len(set(self.sections)) != len(self.sections):
            raise ConfigError(
                "report.sections: needed findings, impression, or both, each at most once"
            )
        at_least("report.max_tokens", self.max_tokens, 2)
        at_least("report.gallery", self.gallery, 0)
        at_least("report.references", self.references, 1)
        if not 0 <= self.findings_weight < float("inf"):
            raise ConfigError(f"report.findings_weight = {self.findings_weight}: needed 0 or more")
