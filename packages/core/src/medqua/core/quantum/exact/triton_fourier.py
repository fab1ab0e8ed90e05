"""The engine `fourier` as one fused Triton kernel each way, for CUDA devices.

The table C is the same; products, contraction and reduction happen in registers and shared
memory. A token leaves only its <Z_i> in global memory and, for training, its cosines and sines
and the slopes in its last angles. The gradient of C is summed over fixed shares of the tokens, in
a fixed order: results repeat bit for bit.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from subprocess import SubprocessError
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medqua.core.errors import ConfigError, QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.table import HeisenbergTable
from medqua.core.quantum.noise import NoiseModel

PRECISIONS = ("ieee", "tf32x3", "tf32")
"""How float32 is multiplied: as is; on tensor cores in three parts; on tensor cores with 10 bits
of mantissa, which keeps about three decimals. float64 is always multiplied as is."""

MOST = 10
"""Most qubits: the padded table of 10 takes 3.3 MB, and stays in a GPU's second-level cache."""

SHARES = 512
"""Programs that the gradient of the table is spread over, if there are tokens enough."""


class TritonEngine:
    """Trigonometric polynomial of the circuit in fused kernels; noise is free.

    Args:
        ansatz: The circuit, of up to 10 qubits.
        noise: Noise, worked into the table.
        precision: One of `PRECISIONS`.

    Raises:
        ConfigError: Too many qubits, or a precision that does not exist.
        QuantumError: Triton is not installed, or there is neither a CUDA device nor the
            interpreter.
    """

    def __init__(
        self, ansatz: Ansatz, noise: NoiseModel | None = None, precision: str = "ieee"
    ) -> None:
        if precision not in PRECISIONS:
            names = ", ".join(map(repr, PRECISIONS))
            raise ConfigError(f"precision is {precision!r}: choose one of {names}")
        if ansatz.n_qubits > MOST:
            raise ConfigError(
                f"engine 'triton' takes up to {MOST} qubits, not {ansatz.n_qubits}: choose "
                "'auto' or another engine"
            )
        self.ansatz, self.precision = ansatz, precision
        self._kernels = load_kernels()
        self._layout = Layout.of(ansatz.n_qubits)
        self._table = HeisenbergTable(ansatz, noise)

    def compile(
        self, theta: Float[Tensor, "max_depth n_qubits 3"], depths: Sequence[int]
    ) -> "dict[int, TritonProgram]":
        """Return a program for each depth: see `Engine`.

        Raises:
            QuantumError: `theta` is not on a CUDA device (and this is not the interpreter).
        """
        if theta.device.type != "cuda" and not interpreted():
            raise QuantumError(
                f"engine 'triton' was given parameters on {theta.device.type!r}: it needs them on "
                "a CUDA device; move the model there or choose engine='fourier'"
            )
        tables = {d: self._table(theta, d, theta.dtype) for d in depths}
        return {
            d: TritonProgram(self._kernels, self._layout, self._layout.pad(table), self.precision)
            for d, table in tables.items()
        }


def runs_fused(n_qubits: int, device: torch.device) -> bool:
    """Return whether the fused kernels are the way to go: few enough qubits, CUDA and Triton."""
    cuda = device.type == "cuda" and torch.version.hip is None  # not checked on ROCm
    return cuda and n_qubits <= MOST and find_spec("triton") is not None


def interpreted() -> bool:
    """Return whether Triton runs its kernels in its interpreter, on the CPU, to check them."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def load_kernels() -> ModuleType:
    """Return the module of the kernels, or say why there is none.

    Raises:
        QuantumError: Triton is not installed, or there is nothing to run its kernels on.
    """
    if find_spec("triton") is None:
        raise QuantumError(
            "engine 'triton' needs Triton, which is not installed: install it (`pip install "
            "triton`), or choose engine='fourier', which gives the same values"
        )
    if not torch.cuda.is_available() and not interpreted():
        raise QuantumError(
            "engine 'triton' found no CUDA device: choose engine='fourier', which gives the same "
            "values, or set TRITON_INTERPRET=1 to check the kernels, slowly, on the CPU"
        )
    from medqua.core.quantum.exact import triton_kernels

    return triton_kernels


@dataclass(frozen=True)
class Layout:
    """How the qubits are divided and the table is laid out: see `triton_kernels`."""

    lead: int
    """Qubits whose product is one number for each chunk of the table."""

    base: int
    """Qubits after them, at most three, whose products are kept in registers."""

    last: int
    """Qubits of F2."""

    rows: int
    """3^base, padded."""

    columns: int
    """3^last, padded."""

    group: int
    """Expectation values worked on at a time."""

    @classmethod
    def of(cls, n_qubits: int) -> "Layout":
        """Return the layout with the least padding for a number of qubits, 2 to 10."""
        last = 1 if n_qubits < 5 else 2 if n_qubits == 5 else 3
        base = min(3, n_qubits - last)
        group = 4 if n_qubits in (2, 3, 4, 7, 8) else 2
        return cls(
            lead=n_qubits - last - base,
            base=base,
            last=last,
            rows=32 if base == 3 else 16,
            columns={1: 4, 2: 16, 3: 32}[last],
            group=group,
        )

    @property
    def n_qubits(self) -> int:
        """Number of qubits."""
        return self.lead + self.base + self.last

    @property
    def groups(self) -> int:
        """Number of groups of expectation values; the last one may be partly empty."""
        return -(-self.n_qubits // self.group)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the padded table."""
        return 3**self.lead * self.rows, self.groups * self.group * self.columns

    def pad(self, table: Float[Tensor, "n terms"]) -> Float[Tensor, "rows columns"]:
        """Return the table as the kernels read it, differentiably.

        A row is a product over the first qubits, `(lead, base)`; a column one over the last
        qubits for one expectation value, `(i, last)`.
        """
        n = self.n_qubits
        terms = table.reshape(n, 3**self.lead, 3**self.base, 3**self.last).permute(1, 2, 0, 3)
        padding = (
            *(0, self.columns - 3**self.last),
            *(0, self.groups * self.group - n),
            *(0, self.rows - 3**self.base),
        )
        return torch.nn.functional.pad(terms, padding).reshape(self.shape)


class TritonProgram:
    """The polynomial with its padded table bound."""

    def __init__(
        self,
        kernels: ModuleType,
        layout: Layout,
        table: Float[Tensor, "rows columns"],
        precision: str,
    ) -> None:
        self.kernels, self.layout, self.precision = kernels, layout, precision
        self.table = table.contiguous()

    def __call__(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i>: see `Program`."""
        result: Tensor = _Fused.apply(  # type: ignore[no-untyped-call]
            angles.contiguous(), self.table, self
        )
        return result

    def constants(self, kernel: str) -> dict[str, Any]:
        """Return what one of the kernels is compiled for here."""
        return compiled_for(kernel, self.layout, self.table.dtype, self.precision)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, ...],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        """Run a kernel on the device of the table.

        Raises:
            QuantumError: Triton could not build it; its own error is the cause.
        """
        try:
            with torch.cuda.device_of(self.table):  # type: ignore[no-untyped-call]
                getattr(self.kernels, kernel)[grid](*arguments, **options)
        except (OSError, RuntimeError, SubprocessError) as error:
            raise QuantumError(
                f"Triton could not build or run its kernel {kernel!r} ({type(error).__name__}): it "
                "needs a C compiler and Python's headers; without them choose engine='fourier', "
                "which gives the same values"
            ) from error


def compiled_for(kernel: str, layout: Layout, dtype: torch.dtype, precision: str) -> dict[str, Any]:
    """Return what a kernel is compiled for: its constants, its warps and its stages.

    Blocks are of a size at which accumulators and operands fit 255 registers a thread, and shared
    memory the 48 KiB that every GPU has. They are fixed rather than tuned on the spot, so that the
    order of sums, and with it the last bit, is the same in every run.
    """
    single = dtype == torch.float32
    constants = {
        "N": layout.n_qubits,
        "LEAD": layout.lead,
        "BASE": layout.base,
        "LAST": layout.last,
        "UP": layout.rows,
        "VP": layout.columns,
        "STRIDE": layout.shape[1],
        "PRECISION": precision if single else "ieee",
    }
    group, block, warps, stages = layout.group, 32 if single else 16, 4, 2
    match kernel:
        case "forward":
            constants |= {"WIDTH": 1 << (layout.n_qubits - 1).bit_length(), "TRAIN": True}
        case "backward_angles":
            group = max(1, 16 // layout.columns)  # a matrix product is at least 16 long
            block = 64 if single else 16
        case _:  # backward_table: its loads feed no matrix product, there is nothing to pipeline
            group = group if single else min(group, 64 // layout.columns)
            wide = group * layout.columns > 64 or not single
            block, warps, stages = 16, 8 if wide else 4, 1
    sizes = {"GROUP": group, "BLOCK": block, "num_warps": warps, "num_stages": stages}
    return constants | sizes


class _Fused(torch.autograd.Function):
    """<Z_i> of every token, with its derivatives in the angles and the table."""

    @staticmethod
    def forward(ctx: Any, angles: Tensor, table: Tensor, program: TritonProgram) -> Tensor:
        layout, (tokens, n) = program.layout, angles.shape
        train = any(ctx.needs_input_grad)
        values = torch.empty_like(angles)
        turns = angles.new_empty((2, tokens, n) if train else 0)
        slopes = angles.new_empty((tokens, layout.last, n) if train else 0)
        if tokens:
            options = program.constants("forward") | {"TRAIN": train}
            grid = (blocks(tokens, options["BLOCK"]), layout.groups)
            arguments = (angles, table, values, turns, slopes, tokens)
            program.launch("forward", grid, arguments, options)
        ctx.program = program
        ctx.save_for_backward(table, turns, slopes)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise QuantumError(
                "the engines have no second derivatives: do without create_graph=True"
            )
        table, turns, slopes = ctx.saved_tensors
        for_angles, for_table, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        pulled = _angles_gradient(ctx.program, table, turns, slopes, grad) if for_angles else None
        in_table = _table_gradient(ctx.program, turns, grad) if for_table else None
        return pulled, in_table, None


def blocks(tokens: int, block: int) -> int:
    """Return how many blocks hold the tokens."""
    return -(-tokens // block)


def _angles_gradient(
    program: TritonProgram, table: Tensor, turns: Tensor, slopes: Tensor, grad: Tensor
) -> Tensor:
    """Return the gradient in the angles, `[tokens, n]`."""
    tokens, pulled = len(grad), torch.empty_like(grad)
    if tokens:
        options = program.constants("backward_angles")
        arguments = (turns, slopes, table, grad, pulled, tokens)
        program.launch("backward_angles", (blocks(tokens, options["BLOCK"]),), arguments, options)
    return pulled


def _table_gradient(program: TritonProgram, turns: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient in the padded table; its padding holds numbers of no meaning."""
    layout, tokens = program.layout, len(grad)
    if not tokens:
        return grad.new_zeros(layout.shape)
    options = program.constants("backward_table")
    block = options["BLOCK"]
    tiles = 3 ** max(0, layout.lead - 1), layout.shape[1] // (options["GROUP"] * layout.columns)
    splits = max(1, min(SHARES // (tiles[0] * tiles[1]), blocks(tokens, 4 * block)))
    share = blocks(tokens, splits * block) * block
    shares = grad.new_empty(splits, *layout.shape)
    arguments = (turns, grad, shares, tokens, share)
    program.launch("backward_table", (*tiles, splits), arguments, options)
    return shares.sum(0) if splits > 1 else shares[0]
