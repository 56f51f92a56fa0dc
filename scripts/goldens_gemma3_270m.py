#!/usr/bin/env python3
"""Makes tests/golden/gemma3_270m/golden.json: what transformers says of the second demo model
(Gemma 3 270M, Q4_K_M), from weights that the gguf package dequantised.

Logits are kept for the last prompt position as the 64 largest (id, value) pairs plus 64 spread ids;
greedy tokens as far as every gap between the best two logits exceeds 4 x the bound.
Run:  python3 scripts/goldens_gemma3_270m.py [GGUF]
"""
import json
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers

GGUF = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                    pathlib.Path.home() / ".cache/pergola/gemma-3-270m-q4_k_m.gguf")
ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "gemma3_270m" / "golden.json"
PROMPT = ["<bos>", "The", "▁capital", "▁of", "▁France", "▁is"]
NEW_TOKENS = 48

reader = gguf.GGUFReader(GGUF)


def value(key):
    return reader.fields[key].contents()


# As google/gemma-3-270m's config.json has it; what the file says is taken from the file.
CONFIG = transformers.Gemma3TextConfig(
    vocab_size=len(value("tokenizer.ggml.tokens")), hidden_size=value("gemma3.embedding_length"),
    intermediate_size=value("gemma3.feed_forward_length"),
    num_hidden_layers=value("gemma3.block_count"),
    num_attention_heads=value("gemma3.attention.head_count"),
    num_key_value_heads=value("gemma3.attention.head_count_kv"),
    head_dim=value("gemma3.attention.key_length"),
    query_pre_attn_scalar=value("gemma3.attention.key_length"),
    max_position_embeddings=value("gemma3.context_length"),
    rms_norm_eps=value("gemma3.attention.layer_norm_rms_epsilon"),
    sliding_window=value("gemma3.attention.sliding_window"), sliding_window_pattern=6,
    rope_parameters=dict(full_attention=dict(rope_type="default",
                                             rope_theta=value("gemma3.rope.freq_base")),
                         sliding_attention=dict(rope_type="default", rope_theta=1e4)),
    tie_word_embeddings=True, attn_implementation="eager")


def build(dtype):
    torch.set_default_dtype(dtype)
    model = transformers.Gemma3ForCausalLM(CONFIG).eval()
    torch.set_default_dtype(torch.float32)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, CONFIG.num_hidden_layers)
    stored = {t.name: t for t in reader.tensors}
    with torch.no_grad():
        for name, p in model.named_parameters():
            tensor = stored[names.get_name(name, try_suffixes=(".weight",))]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(p.shape)
            # The converter adds the 1 that Gemma's norms add.
            p.copy_(torch.from_numpy(values.astype(np.float64) - (1 if p.dim() == 1 else 0)))
    return model


def steps(model, ids, count):
    """Logits of the last position and of `count` greedy steps after it, with the judge's cache."""
    rows, cache, feed = [], None, list(ids)
    with torch.no_grad():
        for _ in range(count + 1):
            out = model(torch.tensor([feed]), past_key_values=cache, use_cache=True,
                        logits_to_keep=1)
            cache = out.past_key_values
            rows.append(out.logits[0, -1].double().numpy())
            feed = [int(np.argmax(rows[-1]))]
    return rows


tokens = value("tokenizer.ggml.tokens")
prompt = [tokens.index(token) for token in PROMPT]
rows = steps(build(torch.float64), prompt, NEW_TOKENS)
truth = rows[0]
bound = max(32 * np.abs(steps(build(torch.float32), prompt, 0)[0] - truth).max(),
            4e-5 * truth.std())
greedy = []
for row in rows[:NEW_TOKENS]:
    second, first = np.argsort(row)[-2:]
    if row[first] - row[second] <= 4 * bound:
        break
    greedy.append(int(first))
text = "".join(tokens[i] for i in greedy).replace("▁", " ")
order = [int(i) for i in np.argsort(-truth)[:64]]
spread = [int(i) for i in np.linspace(0, len(truth) - 1, 64)]
OUT.parent.mkdir(parents=True, exist_ok=True)
OUT.write_text(json.dumps({
    "judge": f"transformers {transformers.__version__}, float64",
    "cases": [{"text": "".join(PROMPT[1:]).replace("▁", " "), "prompt": prompt, "greedy": greedy,
               "greedy_text": text, "bound": float(bound), "logits_std": float(truth.std()),
               "logits": {str(i): float(truth[i]) for i in order + spread}}]}, indent=1) + "\n")
print(prompt, "->", repr(text), "bound", bound, "tokens", len(greedy))
