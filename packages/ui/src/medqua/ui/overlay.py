"""What a model did with a picture, as plain JSON values that the viewer lays over the file."""

import json
from dataclasses import asdict
from typing import Any

import numpy.typing as npt

from medqua.core.vision.image import placement
from medqua.ui.findings import Occluder, Reading
from medqua.ui.studies import Study


def overlay_text(study: Study, reading: Reading) -> str:
    """Tell the viewer what the adapters did with a study; empty where it is not known.

    JSON: `study`, its name; `image`, rows and columns of the model's image, over which every map
    is laid as a grid; `placement`, where the file lies in it; `layers`: `title`, `max_depth`, and
    `gate` and `depth` of every visual token (depth -1: not routed).
    """
    if reading.routes is None or reading.image is None:
        return ""
    routes = reading.routes
    told = {
        "study": study.name,
        "image": list(routes.image),
        "placement": asdict(placement(*size_of(study), reading.image)),
        "layers": [
            {
                "title": layer_title(layer.name),
                "max_depth": layer.max_depth,
                "gate": _rows(layer.gate, 4),
                "depth": layer.depth.tolist(),
            }
            for layer in routes.layers
        ],
    }
    return json.dumps(told, allow_nan=False)


def occlusion_text(study: Study, reader: Occluder) -> str:
    """Tell the viewer what covering regions of a study does; empty where it cannot be read.

    JSON: `study`, and `occlusion`: `labels`, the `change` in probability of each over the grid,
    and `first`, the finding to begin with.
    """
    occlusion = reader.occlude(study.content.read_bytes(), size_of(study))
    if occlusion is None:
        return ""
    told = {
        "labels": list(occlusion.labels),
        "change": [_rows(change, 5) for change in occlusion.change],
        "first": int(occlusion.probability.argmax()),
    }
    return json.dumps({"study": study.name, "occlusion": told}, allow_nan=False)


def size_of(study: Study) -> tuple[int, int]:
    """Return a study's rows and columns."""
    description = json.loads(study.description.read_bytes())
    return int(description["rows"]), int(description["columns"])


def layer_title(name: str) -> str:
    """Name an adapted layer for people: `model.language_model.layers.3` is layer 3."""
    return f"Layer {name.rsplit('.', 1)[-1]}"


def _rows(values: npt.NDArray[Any], digits: int) -> list[list[float]]:
    return [[round(float(value), digits) for value in row] for row in values]
