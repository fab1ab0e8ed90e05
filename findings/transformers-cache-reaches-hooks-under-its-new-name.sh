#!/usr/bin/env bash
# transformers 5.24.0 calls the KV cache of a decoder `cache`; 5.23.0 called it `past_key_values`.
# The old name is still taken, but it is translated inside the decorated forward: a forward
# pre-hook runs before that and sees whichever name the caller wrote. `generate` writes the new one.
# A hook that looks for `past_key_values` finds nothing there, and no warning tells it.
# The other way round, 5.23.0 takes `cache=` without a word, as a further keyword, and runs without a cache.
#
# Seen: 5.23.0 generate -> past_key_values; `cache=` filled with 0 tokens
#       5.24.0 generate -> cache;           `cache=` filled with 4 tokens
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PY'
import sys

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
).eval()
seen = set()


def hook(module, args, kwargs):
    seen.update(name for name in ("cache", "past_key_values") if kwargs.get(name) is not None)


model.register_forward_pre_hook(hook, with_kwargs=True)
ids = torch.tensor([[3, 4, 5, 6]])
model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
cache = DynamicCache(config=model.config)
model.model(ids, cache=cache)
print(f"generate -> {' '.join(sorted(seen))}; cache= filled with {cache.get_seq_length()} tokens")
PY
status=0
for version in 5.23.0 5.24.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "torch==2.13.0" "numpy==2.4.6" "transformers==$version"
  got=$("$folder/$version/bin/python" "$folder/look.py" 2>/dev/null)
  echo "transformers $version: $got"
  case $version in
    5.23.0) want="generate -> past_key_values; cache= filled with 0 tokens" ;;
    5.24.0) want="generate -> cache; cache= filled with 4 tokens" ;;
  esac
  [ "$got" = "$want" ] || { echo "changed: $want was seen before" >&2; status=1; }
done
exit $status
