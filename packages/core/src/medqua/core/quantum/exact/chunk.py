"""What the exact engine does with one chunk of tokens, batch last, in buffers that stay in cache.

F1 and F2 are the products of (1, cos, sin) over the first and last qubits (`fourier.py`). Buffers
and views of them are made once for all chunks of a length: in chunks short enough for the cache,
fresh memory and fresh views would cost as much as the arithmetic.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

CACHE_BYTES = 3_000_000
"""Size of the buffers of one chunk on a CPU, not all in use at a time: more than the second-level
cache of a core (2 MB where it was measured) holds costs several times as much."""

LONGEST = 4096
"""Most tokens of a chunk on a CPU."""

ACCELERATOR_BYTES = 1_000_000_000
"""Size of the buffers of one chunk elsewhere: large enough to keep a GPU busy."""


class Angle(NamedTuple):
    """Views for the derivative in one angle, `h = h0 + h1 cos + h2 sin`, and for h."""

    both: Tensor
    """h1 and h2 in one."""

    others: Tensor
    """Products over the qubits that are still to come, by which both are multiplied."""

    scratch: Tensor
    """Where to."""

    slopes: Tensor
    """Where their sums go: the derivatives by cos and by sin."""

    rest: Tensor
    """h0, which becomes h."""

    by_cosine: Tensor
    """h1."""

    by_sine: Tensor
    """h2."""

    cosine: Tensor
    sine: Tensor

    def work(self, axis: int) -> None:
        """Work out the derivatives, then h; `axis` is that of the products."""
        torch.mul(self.both, self.others, out=self.scratch)
        torch.sum(self.scratch, axis, out=self.slopes)
        self.rest.addcmul_(self.by_cosine, self.cosine).addcmul_(self.by_sine, self.sine)


class Chunk:
    """Buffers for `size` tokens, like `like` in dtype and device."""

    def __init__(self, like: Tensor, n_qubits: int, first: int, size: int) -> None:
        n, last = n_qubits, n_qubits - first
        self.n, self.first, self.size = n, first, size
        self.basis = like.new_zeros(2, n, size)  # cosines, sines
        both = like.new_empty(2, 3**first, size)
        both[:, 0] = 1.0
        self.f1, self.f2 = both[0], both[1, : 3**last]
        self.by_first = like.new_empty(first, 2, size)
        self.by_last = like.new_empty(last, n, 2, size)
        self.rows = like.new_empty(n * 3**last, size)  # C F1, and the weights of F2
        self.partial = self.rows.view(n, -1, size)
        self.scratch = like.new_empty(scratch_rows(n, first), size)
        self._cosines, self._sines = self.basis.unbind()
        self._products = tuple(self._steps(both))

    def load(self, basis: Float[Tensor, "2 n tokens"]) -> None:
        """Take cosines and sines of the angles and multiply out F1 and F2."""
        self.basis.copy_(basis)
        self._multiply()

    def turn(self, angles: Float[Tensor, "n tokens"]) -> None:
        """Work out cosines and sines of up to `size` angles and multiply out F1 and F2."""
        tokens = angles.shape[1]
        torch.cos(angles, out=self._cosines[:, :tokens])
        torch.sin(angles, out=self._sines[:, :tokens])
        self._multiply()

    def _multiply(self) -> None:
        for factors, earlier, products in self._products:
            torch.mul(factors, earlier, out=products)

    def values(self, out: Float[Tensor, "n tokens"]) -> None:
        """Write `z = sum_t partial[:, t] * F2[t]`."""
        scratch = self.scratch[: len(self.rows)].view_as(self.partial)
        torch.sum(torch.mul(self.partial, self.f2, out=scratch), 1, out=out)

    def values_and_slopes(
        self, out: Float[Tensor, "n tokens"], slopes: Float[Tensor, "last n tokens"]
    ) -> None:
        """Write z and its derivatives in the last angles; uses up `partial`.

        They are taken here, where `partial` is at hand, so that it need not be kept for the
        backward pass: the slopes are far smaller.
        """
        for angle in self._last:
            angle.work(2)
        cosine, sine = self.basis[:, self.first :, None]
        torch.mul(self.by_last[:, :, 1], cosine, out=slopes)
        slopes.addcmul_(self.by_last[:, :, 0], sine, value=-1)
        out.copy_(self.partial[:, 0])

    def weigh(self, weights: Float[Tensor, "n tokens"]) -> None:
        """Write the derivatives of `sum_i weights[i] z[i]` by C F1 into `rows`."""
        torch.mul(weights[:, None], self.f2, out=self.partial)

    def pull_back(self, out: Float[Tensor, "first tokens"]) -> None:
        """Write the gradient in the first angles; uses up `gradient`."""
        for angle in self._first:
            angle.work(1)
        cosine, sine = self.basis[:, : self.first]
        torch.mul(self.by_first[:, 1], cosine, out=out)
        out.addcmul_(self.by_first[:, 0], sine, value=-1)

    def _steps(self, both: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield factors, earlier products and the place of the next ones.

        The first qubit is the slowest digit, so that the products over the last j qubits of a
        part are the first 3^j rows. Both parts go together as long as F2 has qubits.
        """
        last = self.n - self.first
        for j in range(self.first):
            size, q = 3**j, self.first - 1 - j
            if j < last:  # axes (cos/sin, part, products)
                factors = self.basis[:, q : q + last + 1 : last, None]
                earlier = both[:, :size]
                products = both[:, size : 3 * size].view(2, 2, size, -1).transpose(0, 1)
            else:
                factors, earlier = self.basis[:, q, None], self.f1[:size]
                products = self.f1[size : 3 * size].view(2, size, -1)
            yield factors, earlier, products

    @cached_property
    def gradient(self) -> Tensor:
        """Place of the gradient of F1, `[3^first, size]`."""
        return torch.empty_like(self.f1)

    @cached_property
    def _first(self) -> tuple[Angle, ...]:
        """What `pull_back` needs."""
        return tuple(self._first_angles())

    @cached_property
    def _last(self) -> tuple[Angle, ...]:
        """What `values_and_slopes` needs."""
        return tuple(self._last_angles())

    def _first_angles(self) -> Iterator[Angle]:
        """Yield the views for the gradient of F1."""
        rest = self.gradient
        for q in range(self.first):
            blocks = rest.view(3, -1, self.size)
            rest, by_cosine, by_sine = blocks.unbind()
            others = self.f1[: len(rest)]
            scratch = self.scratch[: 2 * len(rest)].view(2, -1, self.size)
            trig = self.basis[:, q].unbind()
            yield Angle(
                blocks[1:], others, scratch, self.by_first[q], rest, by_cosine, by_sine, *trig
            )

    def _last_angles(self) -> Iterator[Angle]:
        """Yield the views for the derivatives of z."""
        rest = self.partial
        for k, q in enumerate(range(self.first, self.n)):
            axes = rest.view(self.n, 3, -1, self.size)
            rest, by_cosine, by_sine = axes.unbind(1)
            others = self.f2[: rest.shape[1]]
            scratch = self.scratch[: 2 * self.n * len(others)].view_as(axes[:, 1:])
            trig = self.basis[:, q].unbind()
            yield Angle(
                axes[:, 1:], others, scratch, self.by_last[k], rest, by_cosine, by_sine, *trig
            )


def scratch_rows(n_qubits: int, first: int) -> int:
    """Return the rows of scratch that a chunk needs."""
    rows: int = max(n_qubits * 3 ** (n_qubits - first), 2 * 3 ** (first - 1))
    return rows


def chunks(like: Tensor, n_qubits: int, first: int, tokens: int) -> Iterator[tuple[Chunk, slice]]:
    """Yield the tokens in parts, each with the buffers to use."""
    on_cpu = like.device.type == "cpu"
    budget: int = CACHE_BYTES if on_cpu else ACCELERATOR_BYTES
    numbers = 2 * 3**first + n_qubits * 3 ** (n_qubits - first) + scratch_rows(n_qubits, first)
    fits = int(budget // (numbers * like.element_size())) // 64 * 64
    size = max(64, min(fits, LONGEST if on_cpu else 2**20))
    chunk = None
    for begin in range(0, tokens, size):
        part = slice(begin, min(begin + size, tokens))
        if chunk is None or part.stop - begin != chunk.size:
            chunk = Chunk(like, n_qubits, first, part.stop - begin)
        yield chunk, part
