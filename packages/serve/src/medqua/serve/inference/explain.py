"""Where a model looked: which visual tokens its adapters routed, and what covering a region does.

    told = explain_file(bundle, "chest.dcm", decoder)   # findings, and what the adapters did
    told.routes.layers[0].routed                        # [rows, columns] of visual tokens
    occlusion(bundle, told.image).change                # [findings, rows, columns]

A token's cell in the image is where it lies, not all that it stands for: by the time the adapters
see a token, the vision tower has mixed the image into it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medqua.core.adapter.classical import classical_only
from medqua.core.adapter.layer import QuasarBlock, QuasarLayer
from medqua.core.adapter.router import Routed
from medqua.core.errors import BundleError, ShapeError
from medqua.core.findings.result import Findings
from medqua.core.model.bundle import Bundle
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.vision.image import Decoded, Decoder, ImageSpec
from medqua.core.vision.processor import build_inputs
from medqua.serve.inference.pipeline import Result, Source, predict_files

WINDOWS = 16
"""Regions along a side that are covered at most: finer grids are covered several tokens at once."""


@dataclass(frozen=True, eq=False)
class LayerRoutes:
    """What one adapter did with one image."""

    name: str
    """The adapted decoder layer, as the backbone names it."""
    gate: npt.NDArray[np.float32]
    """g of Eq. 5 of every visual token, `[rows, columns]`, in [0, 1]."""
    routed: npt.NDArray[np.bool_]
    """The visual token went through the bottleneck, `[rows, columns]`."""
    depth: npt.NDArray[np.int64]
    """Circuit layers of the visual tokens that were routed, -1 elsewhere, `[rows, columns]`."""
    target: float
    """Share of the tokens that training held the router to."""
    others: int
    """Tokens of the text that may be routed."""
    others_routed: int
    """Tokens of the text that were."""
    angles: npt.NDArray[np.float32]
    """phi of the routed tokens of the image, row by row, `[n, n_qubits]` (radian)."""
    values: npt.NDArray[np.float32]
    """<Z_i> of the same tokens, `[n, n_qubits]`."""
    ansatz: Ansatz | None
    """The circuit; None where a classical stand-in takes its place."""
    theta: npt.NDArray[np.float32]
    """The circuit's parameters, `[max_depth, n_qubits, 3]` (radian); empty without one."""
    max_depth: int
    """Largest number of circuit layers."""


@dataclass(frozen=True, eq=False)
class Routes:
    """What the adapters did with one image; the answer that it belongs to beside it."""

    image: tuple[int, int]
    """Rows and columns of the model's image, over which the grid of tokens is laid."""
    layers: tuple[LayerRoutes, ...]
    """One an adapted layer, in order; empty without a Quasar adapter."""
    logits: npt.NDArray[np.float32]
    """Scores of the findings, `[n_labels]`."""


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What covering each region of the image with grey does to each finding."""

    image: tuple[int, int]
    """Rows and columns of the model's image, over which the grid of regions is laid."""
    labels: tuple[str, ...]
    """Names of the findings."""
    probability: npt.NDArray[np.float64]
    """Calibrated, nothing covered, `[n_labels]`."""
    change: npt.NDArray[np.float64]
    """Logit less that with the region covered, `[n_labels, rows, columns]`: positive where what is
    seen there speaks for the finding. Of the logit, as a probability near 0 or 1 hardly moves."""
    grey: float
    """What regions are covered with: the mean of the image, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Explained:
    """One file's findings, and how they came about."""

    result: Result
    """As `predict_files` gives it."""
    image: npt.NDArray[np.float32] | None
    """The model's image `[H, W]`; None where the file was refused."""
    routes: Routes | None
    """What the adapters did in that same forward pass; None where the file was refused or it is not
    known where the backbone's visual tokens lie."""
    classical: Findings | None
    """The same with the quantum path taken away; None without one."""


def explain_file(bundle: Bundle, source: Source, decoder: Decoder) -> Explained:
    """Name the findings of one file as `predict_files` does, and tell how they came about.

    Args:
        bundle: An opened bundle.
        source: Path, or name and content.
        decoder: Decodes the file, once.

    Raises:
        BundleError: The model gives a score that is not a finite number.
    """
    kept = _Kept(decoder)
    with _watched(bundle.classifier) as seen:
        (result,) = predict_files(bundle, [source], decoder=kept)
    if result.findings is None or kept.decoded is None:
        return Explained(result, None, None, None)
    image, told, classical = kept.decoded.image, None, None
    try:
        told = _laid(bundle, image, seen, [finding.logit for finding in result.findings])
    except BundleError:
        told = None
    if seen:
        with classical_only(bundle.classifier):
            (other,) = predict_files(bundle, [source], decoder=kept)
        classical = other.findings
    return Explained(result, image, told, classical)


def explain_image(
    bundle: Bundle, image: npt.NDArray[np.float32]
) -> tuple[Findings, Routes | None, Findings | None]:
    """Name the findings of one image, and tell how they came about, as `explain_file` does.

    Args:
        bundle: An opened bundle.
        image: Grey image `[H, W]` float32 in [0, 1], read with the bundle's `ImageSpec`.

    Returns:
        The findings, what the adapters did, the findings without the quantum path.

    Raises:
        BundleError: The model gives a score that is not a finite number.
    """
    with _watched(bundle.classifier) as seen:
        logits = _finite(bundle.logits([image], batch_size=1))
    (findings,) = bundle.findings(logits)
    try:
        told = _laid(bundle, image, seen, logits[0])
    except BundleError:
        told = None
    if not seen:
        return findings, told, None
    with classical_only(bundle.classifier):
        (other,) = bundle.findings(_finite(bundle.logits([image], batch_size=1)))
    return findings, told, other


def _finite(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not np.isfinite(logits).all():
        raise BundleError("the model's scores are not all finite numbers; train it again")
    return logits


class _Kept(Decoder):
    """Decodes one file through another decoder, and keeps it: several things are asked of it."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(limits=decoder.limits)
        self._inner = decoder
        self.decoded: Decoded | None = None

    def read(self, source: str | Path | bytes, spec: ImageSpec) -> Decoded:
        if self.decoded is None:
            self.decoded = self._inner.read(source, spec)
        return self.decoded


def routes(bundle: Bundle, image: npt.NDArray[np.float32]) -> Routes:
    """Read one image and tell what every adapter did with its visual tokens.

    Args:
        bundle: An opened bundle.
        image: Grey image `[H, W]` float32 in [0, 1], read with the bundle's `ImageSpec`.

    Raises:
        BundleError: The backbone's visual tokens do not lie in one grid over the image, or a
            score is not a finite number.
    """
    with _watched(bundle.classifier) as seen:
        (logits,) = _finite(bundle.logits([image], batch_size=1))
    return _laid(bundle, image, seen, logits)


def _laid(
    bundle: Bundle,
    image: npt.NDArray[np.float32],
    seen: "list[tuple[str, QuasarBlock, _Told]]",
    logits: npt.ArrayLike,
) -> Routes:
    """Lay what was heard in a forward pass over its image."""
    rows, columns = token_grid(bundle, image)
    visual = _visual(bundle, image)
    if int(visual.sum()) != rows * columns:
        raise BundleError(
            f"{int(visual.sum())} visual tokens for a grid of {rows} x {columns}: where they lie "
            "in the image is not known for this backbone"
        )
    layers = [_layer(name, block, told, visual, (rows, columns)) for name, block, told in seen]
    scores = np.asarray(logits, np.float32)
    return Routes((image.shape[0], image.shape[1]), tuple(layers), scores)


def occlusion(
    bundle: Bundle,
    image: npt.NDArray[np.float32],
    *,
    batch_size: int = 16,
    inside: tuple[int, int, int, int] | None = None,
) -> Occlusion:
    """Cover one region of an image after another and see how the findings change.

    Occlusion sensitivity (Zeiler and Fergus 2014), with the logit as the score and
    one token's square as the region, or of several where more than `WINDOWS` lie along a side.

    Args:
        bundle: An opened bundle.
        image: Grey image `[H, W]` float32 in [0, 1], read with the bundle's `ImageSpec`.
        batch_size: Covered images in one forward pass.
        inside: `left, top, width, height` of the part that shows the file: its mean is the grey,
            and padding stays black. All by default.
    """
    high, wide = image.shape
    rows, columns = (min(count, WINDOWS) for count in token_grid(bundle, image))
    left, top, width, height = inside or (0, 0, wide, high)
    shown = np.zeros(image.shape, np.bool_)
    shown[top : top + height, left : left + width] = True
    grey = float(image[shown].mean())
    covered = [image]
    for row in range(rows):
        for column in range(columns):
            part = image.copy()
            where = (
                slice(row * high // rows, (row + 1) * high // rows),
                slice(column * wide // columns, (column + 1) * wide // columns),
            )
            part[where][shown[where]] = grey
            covered.append(part)
    logits = bundle.logits(covered, batch_size=batch_size)
    (answer,) = bundle.findings(logits[:1])
    chances = np.array([finding.probability for finding in answer])
    scores = np.asarray(logits, np.float64)
    change = (scores[0] - scores[1:]).T.reshape(-1, rows, columns)
    return Occlusion((high, wide), tuple(bundle.labels), chances, change, grey)


def token_grid(bundle: Bundle, image: npt.NDArray[np.float32]) -> tuple[int, int]:
    """Return how many visual tokens an image has down and across.

    Raises:
        BundleError: The backbone does not lay its tokens out in a grid over the image.
    """
    inputs = build_inputs(bundle.backbone.processor, [image], bundle.prompt)
    grid = inputs.get("image_grid_thw")
    if grid is None:
        raise BundleError("where visual tokens lie in the image is known for Qwen-VL alone")
    merge = int(cast(Any, bundle.backbone.processor).image_processor.merge_size)
    return int(grid[0, 1]) // merge, int(grid[0, 2]) // merge


def _visual(bundle: Bundle, image: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Tell which of the tokens are visual, `[T]`."""
    inputs = build_inputs(
        bundle.backbone.processor, [image], bundle.prompt, image_first=bundle.image_first
    )
    visual: npt.NDArray[np.bool_] = (
        inputs["input_ids"][0] == bundle.classifier.image_token_id
    ).numpy()
    return visual


class _Told:
    """What one block said in one forward pass."""

    routed: Routed
    angles: Tensor
    depth: Tensor
    values: Tensor


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[tuple[str, QuasarBlock, _Told]]]:
    """Listen to the adapters of a model: `(layer, block, what it said)`, in order."""
    seen: list[tuple[str, QuasarBlock, _Told]] = []
    handles = []
    for module in model.modules():
        for block in module.active_blocks() if isinstance(module, QuasarLayer) else ():
            told = _Told()
            seen.append((cast(QuasarLayer, module).layer_name, block, told))

            def routed(
                _: nn.Module, __: Any, out: Routed, told: _Told = told, block: QuasarBlock = block
            ) -> None:
                none = torch.zeros_like(out.mask)  # the block says so after the router has spoken
                told.routed = out if block.quantum else out._replace(mask=none)

            def asked(
                _: nn.Module, put: tuple[Tensor, Tensor], out: Tensor, told: _Told = told
            ) -> None:
                (told.angles, told.depth), told.values = put, out

            handles.append(block.router.register_forward_hook(routed))
            handles.append(block.bottleneck.register_forward_hook(asked))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _layer(
    name: str,
    block: QuasarBlock,
    told: _Told,
    visual: npt.NDArray[np.bool_],
    grid: tuple[int, int],
) -> LayerRoutes:
    """Lay what a block said over the image."""
    mask, active = (_array(x)[0] for x in (told.routed.mask, told.routed.active))
    if mask.shape != visual.shape:
        raise ShapeError(f"the routers saw {len(mask)} tokens, the prompt has {len(visual)}")
    depth = np.full(mask.shape, -1, np.int64)
    depth[mask] = _array(told.depth)
    own = visual[mask]  # of the routed tokens, those of the image
    circuit = block.bottleneck if isinstance(block.bottleneck, VariationalBottleneck) else None
    theta = np.zeros((0, 0, 3), np.float32) if circuit is None else _array(circuit.theta)
    return LayerRoutes(
        name=name,
        gate=_array(told.routed.gate)[0][visual].reshape(grid),
        routed=mask[visual].reshape(grid),
        depth=depth[visual].reshape(grid),
        target=block.config.target_ratio,
        others=int((active & ~visual).sum()),
        others_routed=int((mask & ~visual).sum()),
        angles=_array(told.angles)[own],
        values=_array(told.values)[own],
        ansatz=None if circuit is None else circuit.ansatz,
        theta=theta,
        max_depth=block.config.max_depth,
    )


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array
