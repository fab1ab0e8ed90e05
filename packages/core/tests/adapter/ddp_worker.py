"""What each rank of `test_distributed` runs: started by `ranks.py`."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from medqua.core.adapter import QuasarConfig, diagnostics, regularisation, update_thresholds
from medqua.core.adapter.layer import QuasarLayer

STEPS = 4


def build() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
        pad_token_id=0,
    )
    adapter = QuasarConfig(
        n_qubits=2, max_depth=2, every=1, rank=2, gamma_init=0.5, target_ratio=0.25
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft reads a deprecated property of transformers
        return peft.get_peft_model(LlamaForCausalLM(config), adapter).train()


def inputs_of(rank: int, step: int) -> dict[str, torch.Tensor]:
    tokens = 24 if rank == 0 else 3
    generator = torch.Generator().manual_seed(10 * step + rank)
    ids = torch.randint(1, 32, (1, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def nobody(module: torch.nn.Module, args: Any, routed: Any) -> Any:
    return routed._replace(mask=torch.zeros_like(routed.mask))


def train(rank: int, broadcast: bool) -> dict[str, Any]:
    model = build()
    blocks = [m.active_blocks()[0] for m in model.modules() if isinstance(m, QuasarLayer)]
    if rank == 1:  # floor(0.25 * 3) = 0 at first; once theta is known: still no token
        for block in blocks:
            block.router.register_forward_hook(nobody)
    parallel = DistributedDataParallel(
        model, find_unused_parameters=False, broadcast_buffers=broadcast
    )
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    statistics = []
    for step in range(STEPS):
        loss = parallel(**inputs_of(rank, step)).loss + regularisation(model)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        statistics.append([block.router._gathered.clone() for block in blocks])
        update_thresholds(model)
    ratios = [found.activation_ratio for found in diagnostics(model).values()]
    return {"state": model.state_dict(), "ratios": ratios, "statistics": statistics}


def run(rank: int, folder: Path) -> None:
    """Be a rank, and leave what came of its runs."""
    torch.set_num_threads(1)
    store, patience = f"file://{folder / 'store'}", timedelta(seconds=900)
    dist.init_process_group("gloo", store, patience, world_size=2, rank=rank)
    results = [train(rank, broadcast) for broadcast in (False, True)]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
