"""The classical shadow: a low-rank path for every token (section 3.3, Eq. 7)."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from medqua.core.errors import ConfigError


class ClassicalShadow(nn.Module):
    """Low-rank path beside the quantum one: `H_cls = Drop(U D H) * alpha / r` (Eq. 7).

    `D` is `[r, D]` and `U` is `[D, r]`, without biases. `U` starts at zero and `D` Kaiming-uniform
    with a = sqrt(5), as in LoRA (https://arxiv.org/abs/2106.09685, section 4.1), so that the path
    starts as zero and still learns.

    Args:
        hidden_size: D, width of the hidden states.
        rank: r, at least 1.
        alpha: Scale; the path is multiplied by alpha / r.
        dropout: Probability of dropout, in [0, 1).

    Raises:
        ConfigError: A rank below 1.
    """

    def __init__(
        self, hidden_size: int, *, rank: int = 16, alpha: float = 16.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError(f"rank = {rank}: needed at least 1")
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(
        self, hidden_states: Float[Tensor, "*tokens hidden"]
    ) -> Float[Tensor, "*tokens hidden"]:
        """Return H_cls, of the shape and dtype of `hidden_states`."""
        projected: Tensor = self.dropout(self.up(self.down(hidden_states)))
        return projected * self.scale
