"""One model of the real width in a process of its own, driven step by step over a pipe.

A process of its own, so that its peak memory is its own; a pipe, so that the steps of several
models can be timed in turn on one machine.
"""

import resource
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from medqua.core import QuasarConfig
from medqua.core.adapter.objective import diagnostics, regularisation, update_thresholds
from medqua.core.model import MedQuaClassifier

LABELS = 14
MODELS = ("bare", "lora", "medqua")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one measurement, those of Qwen2.5-VL-3B where nothing else is said."""

    layers: int = 36
    """Decoder layers."""
    vision_layers: int = 32
    """Blocks of the vision tower."""
    vocabulary: int = 151_936
    """Rows of the token embedding."""
    side: int = 448
    """Side of an image, in pixels: (side / 28)^2 visual tokens."""
    text: int = 32
    """Tokens of the prompt."""
    batch: int = 2
    """Images of a step."""
    dtype: str = "float32"
    """Of the backbone; adapters are float32."""
    device: str = "cpu"
    """Where everything runs."""
    threads: int = 2
    """CPU threads of torch."""
    blocks: list[int] | None = None
    """Decoder layers with an adapter, counted from 1; by default every sixth."""
    checkpointing: bool = False
    """Whether activations are recomputed."""

    @property
    def visual(self) -> int:
        """Visual tokens of an image."""
        return (self.side // 28) ** 2


def backbone_config(shape: Shape) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-3B as published, cut to the layers of `shape`."""
    special = shape.vocabulary - 8
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [16, 24, 24],
            },
            "bos_token_id": None,
            "eos_token_id": special,
            "pad_token_id": special,
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        image_token_id=special + 1,
        video_token_id=special + 2,
        vision_start_token_id=special + 3,
        vision_end_token_id=special + 4,
        tie_word_embeddings=True,
    )


def build(name: str, shape: Shape) -> MedQuaClassifier:
    """The backbone with random weights of seed 0, and what `name` adds to it."""
    torch.manual_seed(0)
    dtype = getattr(torch, shape.dtype)
    with torch.device(shape.device):
        torch.set_default_dtype(dtype)
        backbone = Qwen2_5_VLForConditionalGeneration(backbone_config(shape))
        torch.set_default_dtype(torch.float32)
        if shape.checkpointing:
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
        if name == "bare":
            return MedQuaClassifier(backbone, LABELS, tune="head")
        config = (
            LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
            if name == "lora"
            else QuasarConfig(every=6, blocks=shape.blocks)
        )
        adapted = get_peft_model(backbone, config, autocast_adapter_dtype=True)
        return MedQuaClassifier(adapted, LABELS)


def trainable(model: MedQuaClassifier) -> int:
    """Parameters that training changes, the head left out."""
    return sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)


def make_inputs(shape: Shape, config: Qwen2_5_VLConfig) -> dict[str, torch.Tensor]:
    """A batch of random images behind a random prompt, on the device."""
    generator = torch.Generator().manual_seed(1)
    grid = shape.side // 14
    pixels = (shape.batch * grid * grid, 3 * 2 * 14 * 14)
    prompt = torch.randint(0, 1000, (shape.batch, shape.text), generator=generator)
    ids = torch.full((shape.batch, shape.visual + 2), config.image_token_id)
    ids[:, 0], ids[:, -1] = config.vision_start_token_id, config.vision_end_token_id
    ids = torch.cat([prompt, ids], 1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
        "pixel_values": torch.randn(pixels, generator=generator),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * shape.batch),
    }
    return {key: value.to(shape.device) for key, value in inputs.items()}


def peak_bytes(device: str) -> int:
    """Most memory so far: of the process on a CPU, of torch's allocator on a GPU."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def serve(name: str, shape: Shape, pipe: Connection) -> None:
    """Answer `train`, `predict`, `facts` until the pipe closes."""
    torch.set_num_threads(shape.threads)
    model = build(name, shape)
    inputs = make_inputs(shape, model.backbone.config)
    targets = torch.randint(0, 2, (shape.batch, LABELS), device=shape.device).float()
    changed = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(changed, lr=1e-4)
    loaded = peak_bytes(shape.device)

    def train() -> None:
        model.train()
        loss = functional.binary_cross_entropy_with_logits(model(**inputs), targets)
        if name == "medqua":
            loss = loss + regularisation(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if name == "medqua":
            update_thresholds(model)

    def predict() -> None:
        model.eval()
        with torch.inference_mode():
            model(**inputs)

    def timed(run) -> float:
        started = time.perf_counter()
        run()
        if shape.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    while (asked := pipe.recv()) != "end":
        if asked == "facts":
            routed = {
                layer: round(float(found.activation_ratio), 3)
                for layer, found in (diagnostics(model) if name == "medqua" else {}).items()
            }
            pipe.send(
                {
                    "trainable_parameters": trainable(model),
                    "loaded_bytes": loaded,
                    "peak_bytes": peak_bytes(shape.device),
                    "quantum_share": routed,
                    "shape": asdict(shape),
                }
            )
        else:
            pipe.send(timed(train if asked == "train" else predict))
