#!/usr/bin/env python3
"""Makes tests/golden/families: tiny random checkpoints of every family beside Llama, and what
Hugging Face transformers says of them. The rules are those of goldens_llama.py.

Judge: transformers (logits, greedy tokens). Needs torch, transformers, safetensors, numpy.
Run:  python3 scripts/goldens_families.py [NAME ...]

An option that changes rounding alone (GPT-2's reorder_and_upcast_attn) is off in the f64 model and
on in the f32 model, whose difference the bound is made of.
"""
import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from goldens_llama import NEW_TOKENS, PROMPT_TOKENS, attention_peak, greedy, logits_of

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "families"
DISTINCT_TOKENS = 4  # A run of one token would hide a wrong position.
IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=None)
GPT = dict(n_layer=3, n_positions=128, **IDS)
LLAMA = dict(num_hidden_layers=3, max_position_embeddings=128, rms_norm_eps=1e-5, **IDS)
LOCAL = dict(rope_type="default", rope_theta=10000.0)
# rounding: what the f64 model leaves out. rename: keys of config.json written as old files do.
# prefix: whether tensors are stored with the model's prefix. embedding_as_head: the tied tensor is
# stored under the head's name, as some converters do. gain: of queries and keys, where the
# model's own scale would leave attention nearly uniform.
GOLDENS = {
    "bloom": dict(
        family="Bloom", vocab_size=97, hidden_size=30, n_layer=3, n_head=5, **IDS),
    "bloom_post_norm": dict(
        family="Bloom", vocab_size=101, hidden_size=48, n_layer=3, n_head=12,
        apply_residual_connection_post_layernorm=True, layer_norm_epsilon=1e-4,
        rename=dict(hidden_size="n_embed", n_head="num_attention_heads",
                    n_layer="num_hidden_layers"), prefix=False, **IDS),
    "bloom_bf16": dict(
        family="Bloom", vocab_size=89, hidden_size=32, n_layer=4, n_head=4, store="bf16",
        tie_word_embeddings=False, **IDS),
    "gpt_bigcode_mqa": dict(
        family="GPTBigCode", vocab_size=97, n_embd=45, n_head=9, n_inner=70,
        activation_function="gelu", **GPT),
    "gpt_bigcode_mha": dict(
        family="GPTBigCode", vocab_size=103, n_embd=40, n_head=5, multi_query=False,
        activation_function="gelu_fast", attention_softmax_in_fp32=False,
        scale_attention_softmax_in_fp32=False, **GPT),
    "gpt_bigcode_unscaled": dict(
        family="GPTBigCode", vocab_size=101, n_embd=36, n_head=6, scale_attn_weights=False,
        store="bf16", prefix=False, embedding_as_head=True, **GPT),
    "gpt2": dict(
        family="GPT2", vocab_size=97, n_embd=35, n_head=7, prefix=False, **GPT),
    "gpt2_by_layer": dict(
        family="GPT2", vocab_size=101, n_embd=48, n_head=6, n_inner=100,
        scale_attn_by_inverse_layer_idx=True, gain=1.5, reorder_and_upcast_attn=True,
        rounding=["reorder_and_upcast_attn"], tie_word_embeddings=False,
        rename=dict(n_embd="hidden_size", n_head="num_attention_heads",
                    n_layer="num_hidden_layers", n_positions="max_position_embeddings"), **GPT),
    "gpt2_unscaled": dict(
        family="GPT2", vocab_size=89, n_embd=36, n_head=3, scale_attn_weights=False,
        store="bf16", **GPT),
    "llama_linear": dict(
        family="Llama", vocab_size=97, hidden_size=40, intermediate_size=56,
        num_attention_heads=5, num_key_value_heads=1, tie_word_embeddings=False,
        hidden_act="gelu", rope_scaling=dict(type="linear", factor=4.0), **LLAMA),
    "llama_yarn": dict(
        family="Llama", vocab_size=101, hidden_size=36, intermediate_size=72,
        num_attention_heads=3, num_key_value_heads=3, head_dim=16, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32,
                          beta_fast=8.0, mscale=1.5, mscale_all_dim=0.5, truncate=False),
        **LLAMA),
    "mistral": dict(
        family="Mistral", vocab_size=101, hidden_size=42, intermediate_size=60,
        num_attention_heads=7, num_key_value_heads=7, head_dim=10, sliding_window=None,
        tie_word_embeddings=True, store="bf16", **LLAMA),
    "qwen2": dict(
        family="Qwen2", vocab_size=97, hidden_size=36, intermediate_size=60,
        num_attention_heads=6, num_key_value_heads=2, use_sliding_window=True, sliding_window=16,
        max_window_layers=1, tie_word_embeddings=False, **LLAMA),
    "qwen2_yarn": dict(
        family="Qwen2", vocab_size=103, hidden_size=40, intermediate_size=72,
        num_attention_heads=5, num_key_value_heads=5, sliding_window=16, max_window_layers=1,
        tie_word_embeddings=True, store="bf16",
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
        **LLAMA),
    "qwen3": dict(
        family="Qwen3", vocab_size=97, hidden_size=40, intermediate_size=60,
        num_attention_heads=6, num_key_value_heads=3, head_dim=10, attention_bias=True,
        tie_word_embeddings=False, **LLAMA),
    "qwen3_window": dict(
        family="Qwen3", vocab_size=89, hidden_size=36, intermediate_size=64,
        num_attention_heads=3, num_key_value_heads=1, head_dim=16, use_sliding_window=True,
        sliding_window=20, max_window_layers=2, tie_word_embeddings=True, store="bf16",
        embedding_as_head=True,
        rope_scaling=dict(rope_type="dynamic", factor=2.0), **LLAMA),
    "gemma3": dict(
        family="Gemma3", vocab_size=101, hidden_size=40, intermediate_size=56,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, sliding_window=16,
        sliding_window_pattern=2, query_pre_attn_scalar=9, final_logit_softcapping=2.0,
        attn_logit_softcapping=5.0,
        rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                             sliding_attention=LOCAL), **LLAMA),
    "gemma3_bias": dict(
        family="Gemma3", vocab_size=97, hidden_size=48, intermediate_size=72,
        num_attention_heads=3, num_key_value_heads=1, head_dim=16, sliding_window=10,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        query_pre_attn_scalar=16, attention_bias=True, tie_word_embeddings=False, store="bf16",
        **LLAMA),
}


def make_config(options, truth=False):
    options = {k: v for k, v in options.items()
               if k not in ("family", "store", "rename", "prefix", "rounding", "gain",
                            "embedding_as_head")
               and not (truth and k in options.get("rounding", ()))}
    return options


def build(options, dtype, truth=False):
    family = options["family"]
    config = getattr(transformers, {"Gemma3": "Gemma3Text"}.get(family, family) + "Config")(
        **make_config(options, truth), attn_implementation="eager")
    name = {"GPT2": "GPT2LMHeadModel"}.get(family, family + "ForCausalLM")
    torch.manual_seed(0)
    return getattr(transformers, name)(config).to(dtype).eval(), config


def kind_of(name):
    """What a parameter is: norm, embedding, fused or separate q and k, or another matrix."""
    leaf = name.split(".")[-2]
    if "norm" in leaf or leaf.startswith("ln_"):
        return "norm"
    if "embed" in leaf or leaf in ("wte", "wpe", "lm_head"):
        return "embedding"
    if leaf in ("query_key_value", "c_attn"):
        return "fused"
    return "score" if leaf in ("q_proj", "k_proj") else "other"


def qkv_of(config):
    """Rows of q, k and v (lists of index arrays by head) of a fused tensor."""
    heads = config.num_attention_heads
    d = config.hidden_size // heads
    at = np.arange(d)
    if config.model_type == "gpt2" or getattr(config, "multi_query", False):
        kv = 1 if getattr(config, "multi_query", False) else heads
        return ([h * d + at for h in range(heads)], [(heads + h) * d + at for h in range(kv)],
                [(heads + kv + h) * d + at for h in range(kv)])
    return tuple([3 * h * d + i * d + at for h in range(heads)] for i in range(3))


def randomise(model, config, gain, seed):
    """Draws every parameter; scales keep activations of order one and scores of order two."""
    generator = torch.Generator().manual_seed(seed)
    plus_one = "gemma3" in config.model_type
    # What the layers add outweighs the token itself, whose tied head would repeat it forever.
    other = 1.2 if config.model_type not in ("bloom", "gpt2", "gpt_bigcode") else 2.4
    embedding = 1.0 if plus_one else 3.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            kind = kind_of(name)
            transposed = config.model_type == "gpt2" and kind in ("fused", "other")
            fan_in = p.shape[0] if transposed else p.shape[-1]
            if kind == "norm" and name.endswith("weight"):
                # Norms of q and k decide how large scores are.
                size = 1.6 * gain if "q_norm" in name or "k_norm" in name else 1.0
                x = size * (1.0 + 0.3 * x) - (1.0 if plus_one else 0.0)
            elif p.dim() == 1:
                x = 0.3 * x
            elif kind == "embedding":
                x = x * (embedding / fan_in ** 0.5)
            else:
                x = x * ((1.6 * gain if kind == "score" else other) / fan_in ** 0.5)
            if kind == "fused" and p.dim() == 2:
                q, k, _ = qkv_of(config)
                rows = torch.from_numpy(np.concatenate(q + k))
                (x.T if transposed else x)[rows] *= 1.6 / other * gain
            p.copy_(x.to(p.dtype))


def store_weights(model, config, options, folder):
    """Writes the checkpoint and sets the model's parameters to exactly what was stored."""
    dtype = torch.bfloat16 if options.get("store") == "bf16" else torch.float32
    state = dict(model.named_parameters())
    tensors = {n: p.detach().to(dtype).contiguous() for n, p in state.items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    with torch.no_grad():
        for n, tensor in tensors.items():
            state[n].copy_(tensor.to(state[n].dtype))
    if not options.get("prefix", True):
        prefix = model.base_model_prefix + "."
        tensors = {n.removeprefix(prefix): t for n, t in tensors.items()}
    if options.get("embedding_as_head"):
        tied = next(n for n in tensors if n.endswith(("wte.weight", "embed_tokens.weight")))
        tensors["lm_head.weight"] = tensors.pop(tied)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    for key, alias in options.get("rename", {}).items():
        written[alias] = written.pop(key)
    (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def rows_by_head(name, config):
    """[(what, rows by head, axis)] of a parameter in which heads can be swapped."""
    leaf = name.split(".")[-2]
    heads = config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or heads
    d = getattr(config, "head_dim", None) or config.hidden_size // heads
    if leaf in ("query_key_value", "c_attn"):
        axis = 1 if config.model_type == "gpt2" else 0
        return [(what, rows, axis) for what, rows in zip("qkv", qkv_of(config))]
    at = np.arange(d)
    if leaf in ("q_proj", "k_proj", "v_proj"):
        count = heads if leaf == "q_proj" else kv
        return [(leaf, [h * d + at for h in range(count)], 0)]
    attention = ".attn." in name or "attention" in name or "self_attn" in name
    if leaf in ("dense", "o_proj") or (leaf == "c_proj" and attention):
        axis = 0 if config.model_type == "gpt2" else 1
        return [(leaf, [h * d + at for h in range(heads)], axis)]
    return []


def damages(model, config):
    """Yields what was damaged, after damaging the model in place, and undoes it."""
    for name, p in model.named_parameters():
        kept = p.detach().clone()
        with torch.no_grad():
            p.zero_()
        yield "zeroed " + name
        with torch.no_grad():
            p.copy_(kept)
        output = name.endswith("bias") and kind_of(name) == "other"
        for what, by_head, axis in [] if output else rows_by_head(name, config):
            if what in ("k", "k_proj") and p.dim() == 1:
                continue  # Adds q.b to every score of a row: no softmax changes.
            for h in range(len(by_head) - 1):
                a, b = torch.from_numpy(by_head[h]), torch.from_numpy(by_head[h + 1])
                with torch.no_grad():
                    axis_of = axis if p.dim() == 2 else 0
                    p.index_copy_(axis_of, a, kept.index_select(axis_of, b))
                    p.index_copy_(axis_of, b, kept.index_select(axis_of, a))
                yield f"swapped heads {h} and {h + 1} of {what} in {name}"
                with torch.no_grad():
                    p.copy_(kept)


def make(name, options):
    folder = OUT / name
    for attempt in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model64, _ = build(options, torch.float64, truth=True)
        model32, config = build(options, torch.float32)
        randomise(model64, config, options.get("gain", 1.0), seed=1000 * attempt + len(name))
        store_weights(model64, config, options, folder)
        model32.load_state_dict({k: v.float() for k, v in model64.state_dict().items()})
        rng = np.random.default_rng(attempt)
        prompt = [int(x) for x in rng.integers(3, config.vocab_size, PROMPT_TOKENS)]
        truth = logits_of(model64, prompt)
        bound = max(32 * np.abs(logits_of(model32, prompt) - truth).max(), 4e-5 * truth.std())
        tokens, gap = greedy(model64, prompt)
        if gap <= 4 * bound or 2 in tokens or len(set(tokens)) < DISTINCT_TOKENS:
            continue
        peak = attention_peak(model64, prompt)
        if peak < 0.25:
            raise SystemExit(f"{name}: attention is nearly uniform (mean peak {peak:.3f})")
        least = np.inf
        for what in damages(model64, config):
            seen = np.abs(logits_of(model64, prompt) - truth).max()
            least = min(least, seen / bound)
            if seen <= bound:
                raise SystemExit(f"{name}: the golden does not see: {what}")
        truth.astype("<f4").tofile(folder / "logits.f32")
        (folder / "golden.json").write_text(json.dumps({
            "judge": f"transformers {transformers.__version__}, torch {torch.__version__}, float64",
            "prompt": prompt, "greedy": tokens, "bound": float(bound),
            "logits_std": float(truth.std()), "smallest_gap": float(gap), "attention_peak": peak,
            "least_damage_over_bound": float(least), "checkpoint": "."}, indent=1) + "\n")
        print(f"{name}: bound {bound:.3g} std {truth.std():.3g} gap {gap:.3g} peak {peak:.2f} "
              f"least damage {least:.0f} x bound, attempt {attempt}")
        return
    raise SystemExit(f"{name}: no draw has gaps above 4 x the bound")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or GOLDENS:
        make(chosen, GOLDENS[chosen])
