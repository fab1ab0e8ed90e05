"""Traced modules to ONNX files: precision, dynamic axes, external data."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from medqua.core.adapter.layer import QuasarBlock
from medqua.core.errors import BackboneError, ConfigError

OPSET = 20
"""Version of the ONNX operators written; ONNX Runtime knows it since 1.17."""

PRECISIONS = ("fp32", "fp16", "int8")
"""Numbers of the backbone: as trained, half, or matrices in 8 bits. The adapter and the head are
float32 in all of them."""

EXTERNAL_ABOVE = 1_800_000_000
"""Bytes of weights from which they lie beside the graph: protobuf ends at 2 GiB."""

SPARED = re.compile(r"'(stage|stages\.\d+)\.(before|after|head)\b|'bottlenecks\.")
"""Where in a traced module the adapters and the head stand: 8 bits spare them."""


@dataclass(frozen=True, eq=False)
class Traceable:
    """A module with all that is needed to trace it."""

    module: nn.Module
    """What is traced, in eval mode on the CPU."""
    inputs: Mapping[str, Tensor]
    """Example inputs by name, in the order of `forward`."""
    outputs: Sequence[str]
    """Names of the outputs."""
    axes: Mapping[str, Mapping[int, str]]
    """Names of the dynamic axes of inputs."""


def halve(backbone: nn.Module) -> None:
    """Turn a backbone's weights to float16, in place; adapters and buffers stay float32.

    Rotary frequencies are buffers: rounded, they would move far positions by whole tokens.
    """
    blocks = [module for module in backbone.modules() if isinstance(module, QuasarBlock)]
    spared = {id(p) for block in blocks for p in block.parameters()}
    for parameter in backbone.parameters():
        if parameter.is_floating_point() and id(parameter) not in spared:
            parameter.data = parameter.data.half()


def write_graph(
    traced: Traceable, path: Path, precision: str = "fp32", external_above: int = EXTERNAL_ABOVE
) -> None:
    """Trace a module and write it, with its weights beside it where they are large.

    Args:
        traced: The module.
        path: The `.onnx` file to write; weights beside it are `<path>.data`.
        precision: `int8` quantises matrices here; for `fp16` the module has been halved.
        external_above: Bytes of weights from which they lie beside the graph.

    Raises:
        BackboneError: The model cannot be traced.
    """
    shapes = {name: dict(traced.axes.get(name, {})) or None for name in traced.inputs}
    with _quiet():
        try:
            program = torch.onnx.export(
                traced.module,
                kwargs=dict(traced.inputs),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(traced.inputs),
                output_names=list(traced.outputs),
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise BackboneError(
                f"{path.name} cannot be traced: the model holds something that ONNX cannot express "
                f"({_root_cause(error)})"
            ) from error
    assert program is not None
    weights = sum(
        value.const_value.nbytes
        for value in program.model.graph.initializers.values()
        if value.const_value is not None
    )
    external = weights > external_above
    if precision != "int8":
        program.save(path, external_data=external)
        return
    whole = path.with_suffix(".whole.onnx")
    program.save(whole, external_data=external)
    _quantise(whole, path, external)
    for file in (whole, Path(f"{whole}.data")):
        file.unlink(missing_ok=True)


def _quantise(whole: Path, path: Path, external: bool) -> None:
    """Turn the backbone's matrices to 8 bits, each by the range of its own columns."""
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        QuantType,
        quantize_dynamic,
    )

    graph = onnx.load(whole, load_external_data=False).graph
    spared = [node.name for node in graph.node if _spared(node)]
    spared += [f"{name}_MatMul" for name in spared]  # what becomes of a Gemm before it is judged
    with _quiet():
        quantize_dynamic(
            whole,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=spared,
            use_external_data_format=external,
            extra_options={"MatMulConstBOnly": True},
        )


def _spared(node: Any) -> bool:
    """Tell whether a node belongs to an adapter or to the head."""
    scopes = (p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes")
    return any(SPARED.search(scope) for scope in scopes)


def check_precision(precision: str) -> None:
    """Refuse an unknown precision.

    Raises:
        ConfigError: The known ones are named.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}")


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling what it tells whatever the model."""
    names = ("torch.onnx", "onnx_ir", "onnxscript", "root")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
