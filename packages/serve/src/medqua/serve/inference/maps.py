"""Explanations as plain JSON values, between the process that has the model and who shows them."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from medqua.core.quantum.ansatz import Ansatz
from medqua.serve.inference.explain import LayerRoutes, Occlusion, Routes

ARRAYS: dict[str, type[np.generic]] = {
    "gate": np.float32, "routed": np.bool_, "depth": np.int64, "angles": np.float32,
    "values": np.float32, "theta": np.float32,
}  # fmt: skip
"""Fields of `LayerRoutes` that are arrays, and of what."""


def routes_to_dict(routes: Routes) -> dict[str, Any]:
    """Return plain JSON values; `routes_from_dict` takes them back, bit for bit."""
    return {
        "image": list(routes.image),
        "logits": routes.logits.tolist(),
        "layers": [_layer_to_dict(layer) for layer in routes.layers],
    }


def routes_from_dict(told: Mapping[str, Any]) -> Routes:
    """Build routes of `routes_to_dict`'s result.

    Raises:
        ValueError, KeyError, TypeError: It is something else.
    """
    rows, columns = map(int, told["image"])
    layers = tuple(_layer_from_dict(layer) for layer in told["layers"])
    return Routes((rows, columns), layers, np.asarray(told["logits"], np.float32))


def occlusion_to_dict(occlusion: Occlusion) -> dict[str, Any]:
    """Return plain JSON values; `occlusion_from_dict` takes them back, bit for bit."""
    return {
        "image": list(occlusion.image),
        "labels": list(occlusion.labels),
        "probability": occlusion.probability.tolist(),
        "change": occlusion.change.tolist(),
        "grey": occlusion.grey,
    }


def occlusion_from_dict(told: Mapping[str, Any]) -> Occlusion:
    """Build an occlusion of `occlusion_to_dict`'s result.

    Raises:
        ValueError, KeyError, TypeError: It is something else.
    """
    rows, columns = map(int, told["image"])
    labels = tuple(map(str, told["labels"]))
    change = _of_rank(told["change"], np.float64, 3)
    if len(change) != len(labels):
        raise ValueError(f"changes of {len(change)} findings for {len(labels)} labels")
    probability = _of_rank(told["probability"], np.float64, 1)
    return Occlusion((rows, columns), labels, probability, change, float(told["grey"]))


def _layer_to_dict(layer: LayerRoutes) -> dict[str, Any]:
    told = {field.name: getattr(layer, field.name) for field in fields(layer)}
    told |= {name: told[name].tolist() for name in ARRAYS}
    told["theta_shape"] = list(layer.theta.shape)  # lists do not tell the shape of an empty array
    told["n_qubits"] = layer.angles.shape[1]
    told["ansatz"] = None if layer.ansatz is None else asdict(layer.ansatz)
    return told


def _layer_from_dict(told: Mapping[str, Any]) -> LayerRoutes:
    grid = _of_rank(told["gate"], np.float32, 2).shape
    arrays: dict[str, Any] = {name: np.asarray(told[name], kind) for name, kind in ARRAYS.items()}
    if not arrays["gate"].shape == arrays["routed"].shape == arrays["depth"].shape:
        raise ValueError(f"maps of other shapes than the gate's {grid}")
    arrays["theta"] = arrays["theta"].reshape(told["theta_shape"])
    for name in ("angles", "values"):
        arrays[name] = arrays[name].reshape(-1, int(told["n_qubits"]))
    ansatz = None if told["ansatz"] is None else Ansatz(**told["ansatz"])
    plain: dict[str, Any] = {
        "name": str(told["name"]), "target": float(told["target"]),
        **{name: int(told[name]) for name in ("others", "others_routed", "max_depth")},
    }  # fmt: skip
    return LayerRoutes(ansatz=ansatz, **plain, **arrays)


def _of_rank(values: Any, kind: type[np.generic], rank: int) -> npt.NDArray[Any]:
    array = np.asarray(values, kind)
    if array.ndim != rank:
        raise ValueError(f"an array of {array.ndim} dimensions for {rank}")
    return array
