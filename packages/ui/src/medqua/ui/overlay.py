"""What a model did with a picture: plain JSON that the viewer lays over the file, and pixels."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medqua.core.vision.image import ImageSpec, placement
from medqua.ui.findings import Occluder, Reading
from medqua.ui.studies import Study

if TYPE_CHECKING:
    from medqua.serve.inference.explain import Routes


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

    JSON: `study`, and `occlusion`: `labels`, the `change` in the logit of each over the grid,
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


def routed_colours(layers: int) -> npt.NDArray[np.uint8]:
    """Return the colour of a token by how many of the adapters routed it, `[layers + 1, 3]`."""
    import matplotlib as mpl  # takes half a second

    shares = np.arange(layers + 1) / max(layers, 1)
    colours: npt.NDArray[np.uint8] = mpl.colormaps["viridis"](shares, bytes=True)[:, :3]
    return colours


def lay_routed(
    levels: npt.NDArray[np.uint8], size: tuple[int, int], routes: "Routes", spec: ImageSpec
) -> npt.NDArray[np.uint8]:
    """Colour a picture where tokens were routed to the quantum path, as the viewer does at 50 %.

    Args:
        levels: The whole file at any size, grey, `[H, W]`.
        size: The file's rows and columns.
        routes: What the adapters did with it.
        spec: How the file became the model's image.

    Returns:
        Red, green and blue, `[H, W, 3]`; grey where no adapter routed the token.
    """
    counts = np.stack([layer.routed for layer in routes.layers]).sum(0)
    at = placement(*size, spec)
    scales = (at.y, at.top, at.scale_y), (at.x, at.left, at.scale_x)
    cells, inside = [], []
    for axis, (origin, margin, scale) in enumerate(scales):
        stored = (np.arange(levels.shape[axis]) + 0.5) * size[axis] / levels.shape[axis]
        seen = ((stored - origin) / scale + margin) / routes.image[axis]
        inside.append((seen >= 0) & (seen < 1))
        cell = np.floor(seen * counts.shape[axis]).astype(int)
        cells.append(np.clip(cell, 0, counts.shape[axis] - 1))
    laid = np.where(np.outer(*inside), counts[np.ix_(*cells)], 0)
    grey = np.repeat(levels[..., None], 3, axis=2)
    mixed = (grey.astype(np.uint16) + routed_colours(len(routes.layers))[laid] + 1) // 2
    return np.where(laid[..., None] > 0, mixed, grey).astype(np.uint8)


def size_of(study: Study) -> tuple[int, int]:
    """Return a study's rows and columns."""
    description = json.loads(study.description.read_bytes())
    return int(description["rows"]), int(description["columns"])


def layer_title(name: str) -> str:
    """Name an adapted layer for people: `model.language_model.layers.3` is layer 3."""
    return f"Layer {name.rsplit('.', 1)[-1]}"


def _rows(values: npt.NDArray[Any], digits: int) -> list[list[float]]:
    return [[round(float(value), digits) for value in row] for row in values]
