"""What the engines cost, measured, and the cheapest for a circuit and a number of tokens."""

from medqua.core.quantum.ansatz import Ansatz

SECONDS = {
    "fourier": {
        2: (1.2e-3, 2.1e-7),
        3: (1.8e-3, 3.1e-7),
        4: (1.9e-3, 4.6e-7),
        5: (2.2e-3, 1.2e-6),
        6: (2.8e-3, 1.6e-6),
        7: (6.1e-3, 4.6e-6),
        8: (2.3e-2, 8.8e-6),
        9: (8.2e-2, 2.0e-5),
        10: (9.4e-1, 7.2e-5),
    },
    "dense": {
        2: (1.3e-3, 2.3e-7),
        3: (1.4e-3, 2.8e-7),
        4: (1.4e-3, 6.9e-7),
        5: (1.8e-3, 1.5e-6),
        6: (1.8e-3, 2.9e-6),
        7: (2.7e-3, 6.4e-6),
        8: (4.5e-3, 1.6e-5),
        9: (1.6e-2, 5.4e-5),
        10: (8.3e-2, 2.1e-4),
        11: (5.1e-1, 1.2e-3),
        12: (2.0, 3.5e-3),
    },
}
"""CPU seconds of one core, forward and backward, float32: for each layer once, and for each token.
Measured on a Xeon with AVX-512 that multiplied matrices at 64 GFLOP/s; only ratios matter."""

LARGEST = {"fourier": 11, "dense": 13}
"""Most qubits: what an engine holds for all tokens stays below a few GB."""


def cheapest(ansatz: Ansatz, tokens: int, *, noisy: bool, prepared: bool) -> str:
    """Return the name of the engine that costs least.

    Beyond the sizes of the exact engines that is `cudaq`, whatever it costs.

    Args:
        ansatz: The circuit; its deepest prefix is what is counted.
        tokens: How many tokens share its parameters.
        noisy: Whether a noise model is asked for: `fourier` alone has one.
        prepared: Whether tables and unitaries are kept from call to call.
    """
    n = ansatz.n_qubits
    names = [name for name in LARGEST if n <= LARGEST[name] and not (noisy and name != "fourier")]
    if len(names) < 2:
        return names[0] if names else "cudaq"
    if any(n not in SECONDS[name] for name in names):
        return "dense"
    once = 0 if prepared else ansatz.max_depth

    def seconds(name: str) -> float:
        layer, token = SECONDS[name][n]
        return once * layer + tokens * token

    return min(names, key=seconds)
