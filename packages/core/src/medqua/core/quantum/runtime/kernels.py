# mypy: disable-error-code="name-defined, no-untyped-def"
"""The circuit as CUDA-Q kernels; importing this module imports CUDA-Q.

The kernels take the ansatz as numbers (`kernel_arguments`) and build the gates of
`Ansatz.gates` in the same order, the dead RZ left out. Their bodies are CUDA-Q's language, not
Python: `no_type_check` keeps run-time type checkers from wrapping them.
"""

import contextlib
import multiprocessing
import warnings
from typing import no_type_check

from medqua.core.errors import QuantumError
from medqua.core.quantum.ansatz import Ansatz

with contextlib.suppress(ImportError):
    # both bring LLVM: after CUDA-Q it would abort the process
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
_start_method = multiprocessing.get_start_method(allow_none=True)
try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The CUDA-Q `sample` and `observe`", FutureWarning)
        warnings.filterwarnings("ignore", "cudaq-logical is in preview", UserWarning)
        import cudaq as cudaq  # type: ignore[import-untyped]
except ImportError as error:
    raise QuantumError(
        f"CUDA-Q cannot be imported ({error}): install cuda-quantum-cu13, or choose another engine"
    ) from error
if _start_method is None:  # importing CUDA-Q sets `forkserver` for the whole program
    multiprocessing.set_start_method(None, force=True)

ENTANGLER_CODES = {"none": 0, "ring": 1, "line": 2, "all": 3}
ENCODING_CODES = {"ry": 0, "rx": 1}


@cudaq.kernel
@no_type_check
def layers(q: cudaq.qview, theta: list[float], depth: int, entangler: int):
    """Apply the layers: `theta` is flat, `[max_depth, n, 3]` in C order."""
    n = q.size()
    for layer in range(depth):
        for i in range(n):
            rx(theta[3 * (n * layer + i)], q[i])
            ry(theta[3 * (n * layer + i) + 1], q[i])
            if layer < depth - 1:
                rz(theta[3 * (n * layer + i) + 2], q[i])
        if entangler == 1:
            for i in range(n):
                x.ctrl(q[i], q[(i + 1) % n])
        if entangler == 2:
            for i in range(n - 1):
                x.ctrl(q[i], q[i + 1])
        if entangler == 3:
            for i in range(n):
                for j in range(i + 1, n):
                    x.ctrl(q[i], q[j])


@cudaq.kernel
@no_type_check
def ansatz_only(n: int, theta: list[float], depth: int, entangler: int):
    """Apply the layers to the zero state: what `cudaq.get_unitary` needs."""
    q = cudaq.qvector(n)
    layers(q, theta, depth, entangler)


@cudaq.kernel
@no_type_check
def circuit(
    n: int, phi: list[float], theta: list[float], depth: int, encoding: int, entangler: int
):
    """Encode the angles and apply the layers."""
    q = cudaq.qvector(n)
    for i in range(n):
        if encoding == 0:
            ry(phi[i], q[i])
        else:
            rx(phi[i], q[i])
    layers(q, theta, depth, entangler)


@cudaq.kernel
@no_type_check
def layers_folded(q: cudaq.qview, theta: list[float], depth: int, entangler: int, folds: int):
    """Apply the layers with every gate G as `G (G^-1 G)^folds`."""
    n = q.size()
    for layer in range(depth):
        for i in range(n):
            k = 3 * (n * layer + i)
            rx(theta[k], q[i])
            for _ in range(folds):
                rx(-theta[k], q[i])
                rx(theta[k], q[i])
            ry(theta[k + 1], q[i])
            for _ in range(folds):
                ry(-theta[k + 1], q[i])
                ry(theta[k + 1], q[i])
            if layer < depth - 1:
                rz(theta[k + 2], q[i])
                for _ in range(folds):
                    rz(-theta[k + 2], q[i])
                    rz(theta[k + 2], q[i])
        if entangler == 1:
            for i in range(n):
                for _ in range(2 * folds + 1):
                    x.ctrl(q[i], q[(i + 1) % n])
        if entangler == 2:
            for i in range(n - 1):
                for _ in range(2 * folds + 1):
                    x.ctrl(q[i], q[i + 1])
        if entangler == 3:
            for i in range(n):
                for j in range(i + 1, n):
                    for _ in range(2 * folds + 1):
                        x.ctrl(q[i], q[j])


@cudaq.kernel
@no_type_check
def layers_inverse(q: cudaq.qview, theta: list[float], depth: int, entangler: int):
    """Undo `layers`: the same gates backward with the angles' signs turned."""
    n = q.size()
    for back in range(depth):
        layer = depth - 1 - back
        if entangler == 1:
            for m in range(n):
                x.ctrl(q[n - 1 - m], q[(n - m) % n])
        if entangler == 2:
            for m in range(n - 1):
                x.ctrl(q[n - 2 - m], q[n - 1 - m])
        if entangler == 3:
            for m in range(n):
                for j in range(m):
                    x.ctrl(q[n - 1 - m], q[n - 1 - j])
        for i in range(n):
            k = 3 * (n * layer + i)
            if layer < depth - 1:
                rz(-theta[k + 2], q[i])
            ry(-theta[k + 1], q[i])
            rx(-theta[k], q[i])


@cudaq.kernel
@no_type_check
def encode(q: cudaq.qview, phi: list[float], encoding: int, sign: float):
    """Turn every qubit by `sign` times its angle."""
    for i in range(q.size()):
        if encoding == 0:
            ry(sign * phi[i], q[i])
        else:
            rx(sign * phi[i], q[i])


@cudaq.kernel
@no_type_check
def measured(
    n: int,
    phi: list[float],
    theta: list[float],
    depth: int,
    encoding: int,
    entangler: int,
    whole: int,
    each: int,
):
    """Run the circuit U as `U (U^-1 U)^whole` with every gate folded `each` times, and read it.

    The measurement is explicit: readout noise acts on nothing else.
    """
    q = cudaq.qvector(n)
    encode(q, phi, encoding, 1.0)
    for _ in range(each):
        encode(q, phi, encoding, -1.0)
        encode(q, phi, encoding, 1.0)
    layers_folded(q, theta, depth, entangler, each)
    for _ in range(whole):
        layers_inverse(q, theta, depth, entangler)
        encode(q, phi, encoding, -1.0)
        encode(q, phi, encoding, 1.0)
        layers(q, theta, depth, entangler)
    mz(q)


def codes(ansatz: Ansatz) -> tuple[int, int]:
    """Return (encoding, entangler) as the kernels take them."""
    return ENCODING_CODES[ansatz.encoding], ENTANGLER_CODES[ansatz.entangler]
