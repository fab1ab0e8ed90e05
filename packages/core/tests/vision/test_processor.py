import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPImageProcessorPil, LlavaProcessor, Qwen2VLImageProcessorPil

from medqua.core.errors import BackboneError, ShapeError
from medqua.core.model.tiny import TinyArchitecture, build_tiny
from medqua.core.vision.processor import (
    IMAGE_KEYS,
    QwenProcessor,
    build_inputs,
    load_processor,
    patchify,
)

PROMPT = "Name the findings in this frontal chest radiograph."


def images(n: int, height: int = 224, width: int = 224, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).random((n, height, width), dtype=np.float32))


@pytest.fixture(scope="module")
def processor() -> QwenProcessor:
    return build_tiny(TinyArchitecture(), seed=0)[1]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(14, 2, 2), (14, 2, 1), (16, 2, 2), (8, 1, 1)]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_patches_are_bitwise_those_of_transformers(sizes, rows, columns, n):
    patch, merge, temporal = sizes
    reference = Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=merge, temporal_patch_size=temporal, min_pixels=1
    )
    batch = np.stack(images(n, rows * patch * merge, columns * patch * merge, seed=n))
    pixel_values, grid = patchify(reference, batch)
    expected = reference(
        [np.repeat(image[None], 3, axis=0) for image in batch],
        do_rescale=False,
        do_resize=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    assert torch.equal(pixel_values, expected["pixel_values"])
    assert torch.equal(grid.expand(n, -1), expected["image_grid_thw"])


def test_whole_batch_equals_the_published_call(processor):
    batch = images(3)
    ours = build_inputs(processor, batch, PROMPT)
    turn = [
        {
            "role": "user",
            "content": [{"type": "text", "text": PROMPT}, {"type": "image"}],
        }
    ]
    text = processor.apply_chat_template(turn, tokenize=False)
    theirs = processor(
        images=[np.repeat(image[None], 3, axis=0) for image in batch],
        text=[text] * 3,
        do_rescale=False,
        do_resize=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    assert tuple(ours) == IMAGE_KEYS
    for key in IMAGE_KEYS:
        assert torch.equal(ours[key], theirs[key]), key
        assert ours[key].dtype == (torch.float32 if key == "pixel_values" else torch.int64)


def test_eight_bit_pixels_divided_by_255_equal_the_eight_bit_path(processor):
    levels = np.random.default_rng(3).integers(0, 256, (224, 224), dtype=np.uint8)
    ours = build_inputs(processor, [levels.astype(np.float32) / np.float32(255)], PROMPT)
    theirs = processor.image_processor(
        [np.repeat(levels[None], 3, axis=0)],
        do_resize=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=4e-7)


def test_sixteen_bit_steps_survive(processor):
    dark, bright = (np.full((224, 224), v, np.float32) for v in (0.5, 0.5 + 1 / 65535))
    inputs = build_inputs(processor, [dark, bright], "")
    first, second = inputs["pixel_values"].chunk(2)
    assert not torch.equal(first, second)


def test_a_row_does_not_depend_on_its_batch(processor):
    batch = images(4)
    together = build_inputs(processor, batch, PROMPT)
    patches = len(together["pixel_values"]) // 4
    for i, image in enumerate(batch):
        alone = build_inputs(processor, [image], PROMPT)
        assert torch.equal(alone["input_ids"][0], together["input_ids"][i])
        rows = together["pixel_values"][i * patches : (i + 1) * patches]
        assert torch.equal(alone["pixel_values"], rows)


@pytest.mark.parametrize("image_first", [False, True])
def test_prompt_stands_where_asked(processor, image_first):
    inputs = build_inputs(processor, images(1), PROMPT, image_first=image_first)
    visual = inputs["mm_token_type_ids"][0].nonzero().flatten()
    assert len(visual) == 64
    assert torch.equal(visual, torch.arange(int(visual[0]), int(visual[0]) + 64))
    words = processor.tokenizer(PROMPT)["input_ids"]
    ids = inputs["input_ids"][0]
    text = ids[visual[-1] + 2 :] if image_first else ids[1 : visual[0] - 1]
    assert text[: len(words)].tolist() == words


def test_saves_and_loads(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    assert isinstance(loaded, QwenProcessor)
    before = build_inputs(processor, images(2), PROMPT)
    after = build_inputs(loaded, images(2), PROMPT)
    for key in IMAGE_KEYS:
        assert torch.equal(before[key], after[key])


def test_small_image_is_refused_rather_than_blown_up(processor):
    with pytest.raises(ShapeError, match="3136 to"):
        build_inputs(processor, images(1, 28, 28), PROMPT)


def test_bad_images_are_refused(processor):
    grey = images(1)[0]
    with pytest.raises(ShapeError, match="no image"):
        build_inputs(processor, [], PROMPT)
    with pytest.raises(ShapeError, match="uint8"):
        build_inputs(processor, [(grey * 255).astype(np.uint8)], PROMPT)
    with pytest.raises(ShapeError, match=r"\(3, 224, 224\)"):
        build_inputs(processor, [np.repeat(grey[None], 3, axis=0)], PROMPT)
    with pytest.raises(ShapeError, match="one size"):
        build_inputs(processor, [grey, *images(1, 252, 252)], PROMPT)
    with pytest.raises(ShapeError, match="multiples of 28"):
        build_inputs(processor, images(1, 230, 224), PROMPT)
    for value in (1.5, -0.1, np.nan, np.inf):
        bad = grey.copy()
        bad[0, 0] = value
        with pytest.raises(ShapeError, match="finite values"):
            build_inputs(processor, [bad], PROMPT)
    with pytest.raises(ShapeError, match="plain words"):
        build_inputs(processor, [grey], "<|image_pad|>")


def test_folder_without_processor_is_refused(tmp_path: Path):
    with pytest.raises(BackboneError, match="no usable processor"):
        load_processor(tmp_path)


def test_tokenizer_of_another_model_is_refused(processor, tmp_path: Path):
    from transformers import Qwen2Tokenizer

    processor.image_processor.save_pretrained(tmp_path)
    Qwen2Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="does not know"):
        load_processor(tmp_path)


def test_another_family_goes_through_its_own_processor(tmp_path: Path):
    """LLaVA: CLIP pixels, rounded to 8 bits by its own resize, and its own image token."""
    tokenizer = build_tiny(TinyArchitecture(), seed=0)[1].tokenizer
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    size = {"height": 56, "width": 56}
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    batch = images(2, 56, 56)
    inputs = build_inputs(loaded, batch, PROMPT)
    token = loaded.tokenizer.convert_tokens_to_ids("<image>")
    assert (inputs["input_ids"] == token).sum(1).tolist() == [16, 16]
    grey = torch.from_numpy(np.stack(batch))[:, None].expand(-1, 3, -1, -1)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (loaded.image_processor.image_mean, loaded.image_processor.image_std)
    )
    rounding = (inputs["pixel_values"] * std + mean - grey).abs().max()
    assert float(rounding) <= 1 / 255 + 1e-6


def test_architecture_sets_the_patches():
    sizes = dataclasses.replace(TinyArchitecture(), patch_size=16, merge_size=1)
    inputs = build_inputs(build_tiny(sizes, seed=0)[1], images(1), "")
    assert int(inputs["mm_token_type_ids"].sum()) == 14 * 14
