"""What the engines cost, measured, and the cheapest for a circuit and a number of tokens."""

from medqua.core.quantum.ansatz import Ansatz

# forward and backward on one core of a Xeon with AVX-512, float32, ring, PyTorch 2.13
SECONDS: dict[str, dict[int, tuple[float, float]]] = {
    "fourier": {},
    "dense": {},
}


def cheapest(ansatz: Ansatz, tokens: int, *, noisy: bool, prepared: bool) -> str:
    """Return the name of the engine.

    Args:
        ansatz: The circuit.
        tokens: How many tokens share its parameters.
        noisy: Whether a noise model is asked for.
        prepared: Whether tables and unitaries are kept from call to call.
    """
    return "fourier" if noisy or ansatz.n_qubits <= 9 else "dense"
