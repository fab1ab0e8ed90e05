"""CUDA-Q: the circuit as a kernel, on simulators and machines."""
