"""What the engines cost, measured, and the cheapest for a circuit and a number of tokens."""

from functools import lru_cache

from medqua.core.quantum.ansatz import Ansatz

SECONDS: dict[str, dict[int, tuple[float, float, float]]] = {
    "fourier": {
        2: (1.2e-3, 2.1e-7, 0),
        3: (1.8e-3, 3.1e-7, 0),
        4: (1.9e-3, 4.6e-7, 0),
        5: (2.2e-3, 1.2e-6, 0),
        6: (3.0e-3, 1.3e-6, 0),
        7: (4.6e-3, 2.0e-6, 0),
        8: (1.6e-2, 5.2e-6, 0),
        9: (8.2e-2, 2.0e-5, 0),
        10: (9.4e-1, 7.2e-5, 0),
    },
    "dense": {
        2: (1.3e-3, 2.3e-7, 0),
        3: (1.4e-3, 2.8e-7, 0),
        4: (1.4e-3, 6.9e-7, 0),
        5: (1.8e-3, 1.5e-6, 0),
        6: (2.0e-3, 3.3e-6, 0),
        7: (1.6e-3, 6.7e-6, 0),
        8: (4.5e-3, 1.6e-5, 0),
        9: (1.6e-2, 5.4e-5, 0),
        10: (8.3e-2, 2.1e-4, 0),
        11: (5.1e-1, 1.2e-3, 0),
        12: (2.0, 3.5e-3, 0),
    },
    "gates": {
        2: (1.6e-3, 7.6e-7, 3.1e-8),
        3: (1.2e-3, 9.8e-7, 1.5e-7),
        4: (2.1e-3, 2.0e-6, 7.3e-8),
        5: (1.6e-3, 2.3e-6, 3.8e-7),
        6: (1.6e-3, 1.8e-6, 1.5e-6),
        7: (2.3e-3, 1.5e-6, 3.5e-6),
        8: (1.9e-3, 6.4e-6, 5.3e-6),
        9: (2.1e-3, 6.7e-6, 1.5e-5),
        10: (2.8e-3, 3.2e-5, 2.9e-5),
        11: (3.7e-3, 1.8e-5, 6.6e-5),
        12: (3.7e-3, 5.8e-6, 1.7e-4),
        13: (5.2e-3, 0, 4.3e-4),
        14: (7.8e-3, 0, 1.1e-3),
        15: (1.2e-2, 0, 2.4e-3),
        16: (2.3e-2, 0, 3.7e-3),
    },
}
"""CPU seconds of one core, forward and backward, float32: for each layer once, for each token, for
each token and layer. Measured (`benchmarks/measure_costs.py`) on a Xeon with AVX-512 that
multiplied matrices at 64 GFLOP/s; only ratios matter. `fourier` of 6 to 8 qubits and `dense` of 6
and 7 were measured again, in turn and by the minimum, on a busy machine where `dense` of 8 qubits
came out as before (within an eighth)."""

LARGEST = {"fourier": 11, "dense": 13, "gates": 20}
"""Most qubits: what an engine holds for all tokens stays below a few GB."""


@lru_cache(maxsize=1024)
def cheapest(ansatz: Ansatz, tokens: int, *, noisy: bool, prepared: bool) -> str:
    """Return the name of the engine that costs least.

    Beyond the sizes of the exact engines that is `cudaq`, whatever it costs.

    Args:
        ansatz: The circuit; its deepest prefix is what is counted.
        tokens: How many tokens share its parameters.
        noisy: Whether a noise model is asked for: `fourier` alone has one.
        prepared: Whether tables and unitaries are kept from call to call.
    """
    n, depth = ansatz.n_qubits, ansatz.max_depth
    names = [name for name in LARGEST if n <= LARGEST[name] and not (noisy and name != "fourier")]
    measured = [name for name in names if n in SECONDS[name]]
    if not measured:
        return names[-1] if names else "cudaq"

    def seconds(name: str) -> float:
        once, token, layer = SECONDS[name][n]
        # what `gates` does once a call is no preparation: it cannot be kept
        once = 0 if prepared and name != "gates" else once
        return depth * once + tokens * (token + depth * layer)

    return min(measured, key=seconds)
