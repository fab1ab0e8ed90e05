#!/usr/bin/env bash
# With a static KV cache, `generate` of transformers hands sliding-window layers a finished 4-D mask that has only
# `sliding_window` columns once the prompt is behind it, not one for each position of the sequence. Code in a layer that finds the
# padding of a token by its position in the mask reads outside of it, or the wrong column.
#
# Seen: transformers 5.24.0: prompt of 12, window of 8: (12, 12), then (1, 8) for each new token
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "numpy==2.4.6" "transformers==5.24.0"
cat >"$folder/look.py" <<'PY'
import torch
from transformers import MistralConfig, MistralForCausalLM

torch.manual_seed(0)
model = MistralForCausalLM(
    MistralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
).eval()
seen = []


def hook(module, args, kwargs):
    mask = kwargs.get("attention_mask")
    seen.append(None if mask is None else tuple(mask.shape[-2:]))


model.model.layers[0].register_forward_pre_hook(hook, with_kwargs=True)
ids = torch.tensor([[0, 0, *range(3, 13)]])
mask = (ids != 0).long()
model.generate(
    ids, attention_mask=mask, min_new_tokens=3, max_new_tokens=3, do_sample=False,
    cache_implementation="static", disable_compile=True,
)
print("rows and columns of the mask, prompt of 12, window of 8:", *seen)
PY
got=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null | tail -1)
echo "$got"
[[ "$got" == *"(12, 12) (1, 8) (1, 8)" ]] || { echo "changed" >&2; exit 1; }
