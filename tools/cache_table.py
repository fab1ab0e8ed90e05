"""Generate through every KV cache: the same tokens and the same routes as without one?

python tools/cache_table.py                    # this release of transformers, into the results
python tools/cache_table.py --dry              # printed only
python tools/cache_table.py --page             # docs/adapter.md, rewritten from the results
python tools/cache_table.py --page --check     # status 1 if the page is not up to date

Tiny random models with an adapter whose thresholds route a part of the tokens. Prompts of three
lengths are padded on the left and generated together, through the cache. Each row is held to its
prompt alone, unpadded and without a cache: which tokens came, which of them were active and which
went through the bottleneck, layer by layer. Another release: install it into a folder without its
dependencies (`uv pip install --no-deps --target FOLDER transformers==5.23.0`) and put that first on
PYTHONPATH.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from medqua.core.adapter import QuasarConfig
from medqua.core.adapter.router import EntropyRouter, Routed

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "adapter.md"
RESULTS = ROOT / "benchmarks" / "results" / "caches.json"
PACKAGES = ("torch", "peft", "medqua-core")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WINDOW = 8
"""Tokens of a sliding window; all prompts but one are longer."""
LENGTHS = (16, 7, 12)
"""Tokens of the three prompts."""
NEW = 6
"""Tokens generated after each."""
WORD = {True: "same", False: "OTHER"}
PAD, IMAGE, SPECIAL = 0, 60, [60, 61, 62, 63]

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    model: str
    """Qwen2.5-VL (full attention), Mistral (sliding) or Gemma 3 (both)."""
    inputs: str
    """`image` or `text`, padded on the left."""
    cache: str
    """`cache_implementation` of `generate`; `none`: without."""
    decoding: str = "greedy"
    """`greedy`, or `chunked`: the prompt in pieces of 5 tokens."""


@dataclass(frozen=True)
class Held:
    """What of a batch is as in each prompt alone, and how many tokens that was judged by."""

    tokens: bool
    """The same tokens were generated."""
    active: bool
    """The same tokens were active in every adapted layer: all but the padding."""
    routes: bool
    """The same tokens went through the bottleneck in every adapted layer."""
    backbone: bool
    """The backbone without its adapter generated the same tokens, too."""
    active_tokens: int
    routed_tokens: int


class Generated(NamedTuple):
    """What came of a batch of prompts."""

    tokens: Tensor
    """The new ones, `[B, NEW]`."""
    active: list[Tensor]
    """Of each adapted layer, the tokens that could be routed, `[B, prompt + NEW - 1]`."""
    routed: list[Tensor]
    """Those that were."""


CASES = [
    *(
        Case("Qwen2.5-VL", inputs, cache)
        for inputs in ("image", "text")
        for cache in ("none", "dynamic", "static", "offloaded", "offloaded_static", "quantized")
    ),
    *(Case("Qwen2.5-VL", "text", cache, "chunked") for cache in ("dynamic", "static")),
    *(Case("Mistral", "text", cache) for cache in ("none", "dynamic", "static", "offloaded")),
    *(Case("Gemma 3", "text", cache) for cache in ("none", "dynamic", "static", "offloaded")),
    Case("Mistral", "text", "static", "chunked"),
]


def build(name: str) -> PreTrainedModel:
    """A tiny random model with a trained-looking adapter on layers 3 and 6."""
    torch.manual_seed(0)
    if name == "Mistral":
        text = transformers.MistralConfig(**TEXT, sliding_window=WINDOW)
        backbone = transformers.MistralForCausalLM(text)
    elif name == "Gemma 3":
        kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
        text = transformers.Gemma3TextConfig(
            **TEXT, head_dim=8, sliding_window=WINDOW, layer_types=kinds
        )
        backbone = transformers.Gemma3ForCausalLM(text)
    else:
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
        vision = {
            "depth": 2, "num_heads": 2, "patch_size": 14, "hidden_size": 32,
            "intermediate_size": 48, "out_hidden_size": 32, "fullatt_block_indexes": [1],
            "window_size": 56,
        }  # fmt: skip
        config = transformers.Qwen2_5_VLConfig(
            text_config=TEXT | {"rope_parameters": rope}, vision_config=vision,
            image_token_id=IMAGE, video_token_id=61, vision_start_token_id=62,
            vision_end_token_id=63, tie_word_embeddings=False,
        )  # fmt: skip
        backbone = transformers.Qwen2_5_VLForConditionalGeneration(config)
    config = QuasarConfig(n_qubits=3, max_depth=2, every=3, rank=4, gamma_init=0.5)
    model = peft.get_peft_model(backbone, config).eval().to(DEVICE)
    for part in routers(model):
        torch.nn.init.normal_(part.scorer.weight, std=0.3)
    return model


def prompts(kind: str) -> list[dict[str, Tensor]]:
    """Prompts of `LENGTHS` tokens; with an image, four of them are visual."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for length in LENGTHS:
        ids = torch.randint(3, 60, (1, length), generator=generator)
        one = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if kind == "image":
            ids[:, 2:6] = IMAGE
            one["mm_token_type_ids"] = (ids == IMAGE).long()
            one["pixel_values"] = torch.randn(16, 1176, generator=generator)
            one["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        found.append({name: value.to(DEVICE) for name, value in one.items()})
    return found


def together(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of them, padded on the left."""
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            pad = torch.nn.functional.pad
            values = [pad(v, (max(LENGTHS) - v.shape[1], 0), value=PAD) for v in values]
        batch[name] = torch.cat(values)
    return batch


def routers(model: torch.nn.Module) -> list[EntropyRouter]:
    return [module for module in model.modules() if isinstance(module, EntropyRouter)]


@contextmanager
def watched(model: torch.nn.Module) -> Iterator[list[list[Routed]]]:
    """Everything that each router decides meanwhile, call by call."""
    seen: list[list[Routed]] = [[] for _ in routers(model)]
    hooks = [
        router.register_forward_hook(lambda _module, _inputs, routed, at=at: at.append(routed))
        for router, at in zip(routers(model), seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def generate(
    model: torch.nn.Module, inputs: dict[str, Tensor], cache: str = "none", decoding: str = "greedy"
) -> Generated:
    """What comes of these prompts."""
    settings: dict[str, Any] = {"use_cache": False}
    if cache != "none":
        settings = {"cache_implementation": cache}
    if cache == "quantized":
        settings["cache_config"] = {"backend": "fp8"}
    if decoding == "chunked":
        settings["prefill_chunk_size"] = 5
    with watched(model) as seen:
        ids = model.generate(
            **inputs, **settings, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
            suppress_tokens=SPECIAL, disable_compile=True,
        )  # fmt: skip
    calls = [of_layer[-1:] if cache == "none" else of_layer for of_layer in seen]
    calls = [of_layer for of_layer in calls if of_layer]  # none while the adapter is disabled
    return Generated(
        ids[:, inputs["input_ids"].shape[1] :],
        [torch.cat([call.active for call in of_layer], 1) for of_layer in calls],
        [torch.cat([call.mask for call in of_layer], 1) for of_layer in calls],
    )


def set_thresholds(model: torch.nn.Module, rows: list[dict[str, Tensor]]) -> None:
    """Have about a third of the prompts' tokens routed, from a threshold far from any of them."""
    for at, router in enumerate(routers(model)):
        with watched(model) as seen, torch.no_grad():
            for row in rows:
                model(**row)
        logits = torch.cat([call.logits.flatten() for call in seen[at]]).sort().values
        low, high = len(logits) // 2, len(logits) * 4 // 5
        gap = int((logits[low + 1 : high + 1] - logits[low:high]).argmax()) + low
        router.threshold_logit.copy_((logits[gap] + logits[gap + 1]) / 2)


@cache
def alone(name: str, inputs: str) -> tuple[PreTrainedModel, list[Generated], list[Tensor]]:
    """A model, and of each prompt alone what it generates, and what its backbone does, uncached."""
    model, rows = build(name), prompts(inputs)
    set_thresholds(model, rows)
    adapted = [generate(model, row) for row in rows]
    with model.disable_adapter():
        return model, adapted, [generate(model, row).tokens for row in rows]


def hold(case: Case) -> Held:
    """Generate a case's batch, and hold each of its rows to that prompt alone without a cache."""
    model, singles, backbones = alone(case.model, case.inputs)
    batch = together(prompts(case.inputs))
    found = generate(model, batch, case.cache, case.decoding)
    with model.disable_adapter():
        backbone = generate(model, batch, case.cache, case.decoding).tokens
    padding = [max(LENGTHS) - length for length in LENGTHS]
    same = {"active": True, "routes": True}
    for row, (single, skip) in enumerate(zip(singles, padding, strict=True)):
        for name, ours, theirs in (
            ("active", found.active, single.active),
            ("routes", found.routed, single.routed),
        ):
            for mine, one in zip(ours, theirs, strict=True):
                same[name] &= torch.equal(mine[row, skip:], one[0])
                same[name] &= not mine[row, :skip].any()
    return Held(
        torch.equal(found.tokens, torch.cat([single.tokens for single in singles])),
        **same,
        backbone=torch.equal(backbone, torch.cat(backbones)),
        active_tokens=sum(int(layer.sum()) for layer in found.active),
        routed_tokens=sum(int(layer.sum()) for layer in found.routed),
    )


def measure() -> list[dict[str, Any]]:
    """All cases under the installed transformers."""
    found = []
    for case in CASES:
        row: dict[str, Any] = {"transformers": transformers.__version__, **asdict(case)}
        if case.cache.startswith("offloaded") and DEVICE == "cpu":
            row["not_run"] = "needs a CUDA device"
        else:
            row |= asdict(hold(case))
        found.append(row)
    return found


def show(rows: list[dict[str, Any]]) -> Table:
    table = Table("model", "inputs", "cache", "decoding", "tokens", "active", "routes", "backbone")
    for row in rows:
        told = [row["model"], row["inputs"], row["cache"], row["decoding"]]
        if "not_run" in row:
            table.add_row(*told, row["not_run"])
        else:
            names = ("tokens", "active", "routes", "backbone")
            tokens, active, routes, backbone = (WORD[row[name]] for name in names)
            active += f" ({row['active_tokens']})"
            table.add_row(*told, tokens, active, f"{routes} ({row['routed_tokens']})", backbone)
    return table


def keep(rows: list[dict[str, Any]]) -> None:
    """Write the rows of this release into the results; those of other releases stay."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    others = [row for row in found["rows"] if row["transformers"] != transformers.__version__]
    told = {
        "machine": f"{platform.machine()}, {DEVICE}, {platform.system()}",
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
        "rows": sorted(others + rows, key=lambda row: row["transformers"]),
    }
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")


def page(text: str, found: dict[str, Any]) -> str:
    """The page with its table written anew: a line a case, a column a release."""
    releases = sorted({row["transformers"] for row in found["rows"]})
    lines = [
        f"| backbone | prompts | KV cache | {' | '.join(releases)} |",
        "| --- | --- | --- |" + " --- |" * len(releases),
    ]
    for case in CASES:
        told = [case.model, case.inputs, case.cache]
        told[2] += ", prompt in chunks" if case.decoding == "chunked" else ""
        rows = {
            row["transformers"]: row
            for row in found["rows"]
            if all(row[name] == value for name, value in asdict(case).items())
        }
        cells = (cell(rows[release]) for release in releases)
        lines.append(f"| {' | '.join(told)} | {' | '.join(cells)} |")
    begin, end = "<!-- caches -->\n", "<!-- end of caches -->"
    head, rest = text.split(begin, 1)
    return head + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.split(end, 1)[1]


def cell(row: dict[str, Any]) -> str:
    """What a release did in a case."""
    if "not_run" in row:
        return str(row["not_run"])
    counts = f"{row['active_tokens']} active, {row['routed_tokens']} routed"
    if row["tokens"] and row["active"] and row["routes"]:
        return f"same ({counts})"
    other = [name for name in ("tokens", "active", "routes") if not row[name]]
    beside = "" if row["backbone"] else "; so has the backbone alone"
    return f"other {' and '.join(other)} ({counts}){beside}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument("--page", action="store_true", help="write docs/adapter.md from them")
    parser.add_argument("--check", action="store_true", help="with --page: compare, write nothing")
    asked = parser.parse_args()
    if asked.page:
        text = page(PAGE.read_text(), json.loads(RESULTS.read_text()))
        if asked.check:
            return int(text != PAGE.read_text())
        PAGE.write_text(text)
        return 0
    rows = measure()
    Console().print(f"transformers {transformers.__version__}", show(rows))
    if not asked.dry:
        keep(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
