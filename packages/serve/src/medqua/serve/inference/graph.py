"""One ONNX graph in ONNX Runtime, with tensors that stay where they are between graphs."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medqua.core.errors import BundleError, ConfigError

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
ON_HOST = frozenset({"index", "angles", "depth", "logits", "probabilities", "routes"})
"""Outputs that the host reads."""

Value = Any
"""An input: an array on the host, or an `OrtValue`, the output of another graph."""


class Graph:
    """One graph.

    Args:
        path: The `.onnx` file.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: the GPU where ONNX Runtime really uses one.
        threads: Threads of one operator; 0 leaves it to ONNX Runtime.

    Raises:
        BundleError: ONNX Runtime cannot load it, by its opset or because it is damaged.
        ConfigError: `cuda` is asked for and ONNX Runtime does not use it.
    """

    def __init__(self, path: Path, device: str = "auto", threads: int = 0) -> None:
        import onnxruntime as ort  # type: ignore[import-untyped]  # a bundle does without

        kind, self._number = device_of(device)
        wanted: list[Any] = [CPU]
        if kind != "cpu" and CUDA in ort.get_available_providers():
            wanted.insert(0, (CUDA, {"device_id": self._number}))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # threads that wait must not spin: six times the processor time, taken from the decoders
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(os.fspath(path), options, providers=wanted)
        except Exception as error:  # ONNX Runtime's own errors have no common root
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {path.name}: {_first_line(error)}; "
                "export again, or install the ONNX Runtime that the export was made with or a "
                "newer one"
            ) from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        if kind == "cuda" and CUDA not in self.providers:
            raise ConfigError(
                f"device is cuda, and ONNX Runtime uses {', '.join(self.providers)}: install "
                "onnxruntime-gpu with the CUDA libraries that it names, or choose cpu"
            )
        self._device = "cuda" if CUDA in self.providers else "cpu"
        self.inputs = {value.name: value.type for value in self._session.get_inputs()}
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Any]:
        """Run it.

        Args:
            feeds: Inputs by name; what the graph does not take is left out.

        Returns:
            Outputs by name, `OrtValue`s, on the device but for those of `ON_HOST`.
        """
        binding = self._session.io_binding()
        for name in self.inputs:
            value = feeds[name]
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            host = name in ON_HOST or self._device == "cpu"
            binding.bind_output(name, "cpu" if host else "cuda", 0 if host else self._number)
        self._session.run_with_iobinding(binding)
        return dict(zip(self.outputs, binding.get_outputs(), strict=True))


def device_of(name: str) -> tuple[str, int]:
    """Return kind and number of a device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: Another name.
    """
    kind, colon, number = name.partition(":")
    numbered = kind == "cuda" and number.isdecimal() if colon else kind in ("auto", "cpu", "cuda")
    if not numbered:
        raise ConfigError(f"device is {name!r}; give auto, cpu, cuda, or cuda:N")
    return kind, int(number or 0)


def providers_of(graphs: Sequence[Graph]) -> tuple[str, ...]:
    """Return the providers that all graphs use, the preferred first."""
    return tuple(p for p in graphs[0].providers if all(p in g.providers for g in graphs))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
