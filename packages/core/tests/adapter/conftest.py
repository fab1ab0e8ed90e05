"""A tiny random Qwen2.5-VL: six decoder layers, D = 32, images of 56 x 56 pixels."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

IMAGE = 60
PAD = 0


def build_vlm(dtype: torch.dtype = torch.float32) -> Qwen2_5_VLForConditionalGeneration:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "pad_token_id": PAD,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rope_parameters": rope,
            "initializer_range": 0.3,
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 14,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        image_token_id=IMAGE,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen2_5_VLForConditionalGeneration(config).to(dtype).eval()


def image_inputs(batch: int, seed: int = 0) -> dict[str, Any]:
    """`batch` prompts of 12 tokens, four of them visual (56 x 56 pixels), all of equal length."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 60, (batch, 8), generator=generator)
    image = torch.full((batch, 4), IMAGE)
    ids = torch.cat([text[:, :2], image, text[:, 2:]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(batch * 16, 1176, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * batch),
    }


def text_inputs(batch: int, tokens: int = 10, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (batch, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="session")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory, patience: float) -> Path:
    """What the ranks of several processes leave: `<worker>/<rank>.pt`."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ranks.py")), str(folder)],
        capture_output=True,
        text=True,
        timeout=patience,  # a rank that waits for another would run into it
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


@pytest.fixture
def vlm() -> Qwen2_5_VLForConditionalGeneration:
    return build_vlm()


@pytest.fixture(name="build_vlm")
def _build_vlm() -> Callable[..., Qwen2_5_VLForConditionalGeneration]:
    return build_vlm


@pytest.fixture(name="image_inputs")
def _image_inputs() -> Callable[..., dict[str, Any]]:
    return image_inputs


@pytest.fixture(name="text_inputs")
def _text_inputs() -> Callable[..., dict[str, Any]]:
    return text_inputs
