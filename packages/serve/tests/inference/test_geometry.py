import numpy as np
import pytest
import torch
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from medqua.core.errors import BundleError
from medqua.core.model import Bundle
from medqua.core.model.classifier import vision_language_model
from medqua.core.vision.processor import build_inputs, patch_spec
from medqua.serve.inference.geometry import Geometry, decoder_tables, vision_tables

GRIDS = [(8, 8), (6, 10), (2, 2), (14, 6)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("side", [2, 3, 0])
def test_windows_are_those_of_the_original(grid: tuple[int, int], side: int):
    rows, columns = grid
    tables = vision_tables(rows, columns, Geometry(2, side, 0, 0))
    whole = side or max(rows, columns)
    order, edges = get_vision_window_index(
        torch.tensor([[1, rows, columns]]), 2, window_size=whole * 2 * 14, patch_size=14
    )
    real = tables.window_mask.reshape(*tables.window_order.shape, 4)[..., 0]
    assert tables.window_order[real].tolist() == order.tolist()
    assert (4 * real.sum(1)).tolist() == edges.diff().tolist()
    assert (tables.window_order[~real] == 0).all()
    flat = tables.window_order.reshape(-1)[tables.unit_slot]
    assert flat.tolist() == list(range(rows * columns // 4))


@pytest.mark.parametrize("grid", GRIDS)
def test_patch_positions_are_those_of_the_original(grid: tuple[int, int]):
    tables = vision_tables(*grid, Geometry(2, 2, 0, 0))
    expected = get_vision_position_ids(torch.tensor([[1, *grid]]), 2)
    assert np.array_equal(tables.position_ids, expected.numpy())


@pytest.mark.parametrize("image_first", [False, True])
@pytest.mark.parametrize("size", [(112, 112), (112, 168)])
def test_decoder_tables_are_what_the_torch_model_makes(bundle: Bundle, size, image_first: bool):
    images = [np.zeros(size, np.float32)] * 2
    processor, token = bundle.backbone.processor, bundle.classifier.image_token_id
    inputs = build_inputs(processor, images, bundle.prompt, image_first=image_first)
    ids = inputs["input_ids"]
    model = vision_language_model(bundle.classifier.backbone).base_model
    positions, _ = model.get_rope_index(ids, inputs["mm_token_type_ids"], inputs["image_grid_thw"])
    before = ids[0].tolist().index(token)
    text = int((ids[0] != token).sum())
    spec = patch_spec(processor.image_processor)
    geometry = Geometry(spec.merge, 0, before, text - before)
    tables = decoder_tables(2, *spec.grid(*size), geometry)
    assert np.array_equal(tables.position_ids, positions.numpy())
    assert np.array_equal(tables.source >= text, (ids == token).numpy())
    words = ids[0][ids[0] != token]
    rows = torch.cat([words, torch.full((int((ids[0] == token).sum()),), token)])
    assert torch.equal(rows[tables.source[1]], ids[1])
    assert tables.mask.all()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"merge": 0, "window": 0, "before": 1, "after": 1},
        {"merge": 1, "window": 0, "before": 1},
    ],
)
def test_sizes_that_are_none_are_refused(data: dict[str, int]):
    with pytest.raises(BundleError, match="geometry"):
        Geometry.from_dict(data)
