"""The `[experiment]` section of a recipe: what `reproduce` compares, declared before it is run."""

from dataclasses import dataclass

from medqua.core.errors import ConfigError
from medqua.train.typed import at_least


@dataclass(frozen=True, kw_only=True)
class ExperimentSection:
    """Arms, seeds, and the one comparison that is not chosen after seeing the figures.

    Raises:
        ConfigError: An endpoint of one arm, no seed or one twice, or a share outside (0, 1].
    """

    arm: str = "medqua"
    """First arm of the endpoint: its test macro AUROC minus that of `against`, patient-clustered
    and paired, the mean over seeds."""

    against: str = "mlp"
    """Second arm of the endpoint."""

    arms: tuple[str, ...] = ()
    """Arms that are run; empty is all of them. Those of the endpoint are needed."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Values of `run.seed`, each with every arm."""

    shares: tuple[float, ...] = (1.0,)
    """Shares of the training patients, (0, 1], each with every arm; `--curve` is 0.01, 0.1, 1."""

    resamples: int = 2000
    """Bootstrap samples of the test patients."""

    confidence: float = 0.95
    """Coverage of intervals, and one minus the level of tests."""

    def __post_init__(self) -> None:
        if self.arm == self.against:
            raise ConfigError(
                f"experiment.arm and experiment.against are both {self.arm!r}: needed two arms"
            )
        missing = [name for name in (self.arm, self.against) if name not in self.arms]
        if self.arms and missing:
            raise ConfigError(
                f"experiment.arms lacks {', '.join(missing)} of the declared endpoint: add it, or "
                "declare another by experiment.arm and experiment.against"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"experiment.seeds = {self.seeds}: needed different seeds from 0 up")
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ConfigError(f"experiment.shares = {self.shares}: needed shares in (0, 1]")
        at_least("experiment.resamples", self.resamples, 1)
        if not 0 < self.confidence < 1:
            raise ConfigError(f"experiment.confidence = {self.confidence}: needed 0 to 1, within")

    @property
    def endpoint(self) -> str:
        """The declared comparison in words, by the arms' names."""
        seeds = f"mean of {len(self.seeds)} seeds" if len(self.seeds) > 1 else "one seed"
        return (
            f"test macro AUROC of {self.arm} minus {self.against}, paired over patients, {seeds}, "
            f"{self.confidence:.0%} bootstrap interval"
        )
