#!/usr/bin/env python3
"""Makes tests/golden/llama: tiny random checkpoints and what Hugging Face transformers says of
them.

Judges: transformers (logits, greedy tokens), the gguf package (quantise, dequantise, write GGUF).
Needs torch, transformers, safetensors, gguf, numpy.
Run:  python3 scripts/goldens_llama.py [NAME ...]

Each golden is a folder with the checkpoint and golden.json {prompt, greedy, bound, logits_std, ...}
and logits.f32 ([prompt tokens, vocabulary] little endian, of the f64 model). The bound is max(32 x
the largest |f32 - f64| difference of transformers' own logits, 4e-5 x their standard deviation). A
golden is refused unless attention is far from uniform, every top-1/top-2 gap exceeds 4 x the bound,
and every damage (a tensor zeroed, two heads swapped) is seen.
"""
import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "llama"
PROMPT_TOKENS = 64
NEW_TOKENS = 32
BASE = dict(
    vocab_size=97, num_hidden_layers=3, max_position_embeddings=128, rms_norm_eps=1e-5,
    bos_token_id=1, eos_token_id=2, pad_token_id=None)
GOLDENS = {
    "mha": dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4,
                attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "gqa_tied": dict(hidden_size=48, intermediate_size=80, num_attention_heads=6,
                     num_key_value_heads=2, tie_word_embeddings=True, rope_theta=100000.0),
    "uneven": dict(hidden_size=36, intermediate_size=72, num_attention_heads=9,
                   num_key_value_heads=3, head_dim=8, tie_word_embeddings=False),
    "llama3_rope": dict(hidden_size=32, intermediate_size=48, num_attention_heads=4,
                        num_key_value_heads=2, tie_word_embeddings=True, rope_theta=10000.0,
                        rope_scaling=dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0,
                                          high_freq_factor=4.0,
                                          original_max_position_embeddings=32)),
    "mistral_window": dict(family="mistral", hidden_size=32, intermediate_size=48,
                           num_attention_heads=8, num_key_value_heads=2, head_dim=8,
                           sliding_window=16, tie_word_embeddings=False),
    "sharded_bf16": dict(store="bf16", hidden_size=32, intermediate_size=64, num_attention_heads=4,
                         num_key_value_heads=2, tie_word_embeddings=False, shards=3),
    "gguf_f16": dict(store="F16", hidden_size=64, intermediate_size=96, num_attention_heads=4,
                     num_key_value_heads=2, tie_word_embeddings=False),
    "gguf_q8_0": dict(store="Q8_0", hidden_size=64, intermediate_size=96, num_attention_heads=4,
                      num_key_value_heads=2, tie_word_embeddings=False),
    "gguf_q4_0": dict(store="Q4_0", hidden_size=64, intermediate_size=96, num_attention_heads=4,
                      num_key_value_heads=2, tie_word_embeddings=True),
    "gguf_q4_1": dict(store="Q4_1", hidden_size=96, intermediate_size=160, num_attention_heads=6,
                      num_key_value_heads=3, tie_word_embeddings=True),
}


def make_config(options):
    options = dict(options)
    family = options.pop("family", "llama")
    store = options.pop("store", "f32")
    shards = options.pop("shards", 1)
    cls = transformers.MistralConfig if family == "mistral" else transformers.LlamaConfig
    config = cls(**{**BASE, **options}, attn_implementation="eager")
    return config, store, shards


def build(config, dtype):
    mistral = config.model_type == "mistral"
    cls = transformers.MistralForCausalLM if mistral else transformers.LlamaForCausalLM
    torch.manual_seed(0)
    return cls(config).to(dtype).eval()


def randomise(model, seed):
    """Draws every parameter; scales keep activations of order one and scores of order two."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if p.dim() == 1 and "norm" in name:
                x = 1.0 + 0.3 * x
            elif p.dim() == 1:
                x = 0.3 * x
            elif "embed" in name or "lm_head" in name:
                x = x * (3.0 / p.shape[1] ** 0.5)
            elif "q_proj" in name or "k_proj" in name:
                x = x * (1.6 / p.shape[1] ** 0.5)
            else:
                x = x * (1.2 / p.shape[1] ** 0.5)
            p.copy_(x.to(p.dtype))


def permute(w, heads):
    """llama.cpp's order of the rows of q and k: rotary pairs side by side."""
    pairs = w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def gguf_name(name):
    for a, b in [("model.embed_tokens.weight", "token_embd.weight"),
                 ("model.norm.weight", "output_norm.weight"),
                 ("lm_head.weight", "output.weight"), ("model.layers.", "blk."),
                 ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
                 ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"),
                 ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
                 ("mlp.down_proj", "ffn_down"),
                 ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")]:
        name = name.replace(a, b)
    return name


def store_weights(model, config, store, shards, folder):
    """Writes the checkpoint and sets the model's parameters to exactly what was stored."""
    state = dict(model.named_parameters())
    if store in ("f32", "bf16"):
        dtype = torch.float32 if store == "f32" else torch.bfloat16
        tensors = {n: p.detach().to(dtype).contiguous() for n, p in state.items()}
        if config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        with torch.no_grad():
            for n, p in state.items():
                if n in tensors:
                    p.copy_(tensors[n].to(p.dtype))
        names = sorted(tensors)
        weight_map = {}
        for s in range(shards):
            part = {n: tensors[n] for n in names[s::shards]}
            suffix = "" if shards == 1 else f"-{s + 1:05d}-of-{shards:05d}"
            file = f"model{suffix}.safetensors"
            save_file(part, str(folder / file), metadata={"format": "pt"})
            weight_map.update({n: file for n in part})
        if shards > 1:
            (folder / "model.safetensors.index.json").write_text(
                json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1))
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        return
    kind = gguf.GGMLQuantizationType[store]
    writer = gguf.GGUFWriter(str(folder / "model.gguf"), "llama")
    writer.add_name(folder.name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    byte_symbols = [chr(c) for c in range(33, 33 + config.vocab_size)]
    writer.add_token_list(byte_symbols)
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["! \""])
    writer.add_eos_token_id(2)
    with torch.no_grad():
        for n, p in state.items():
            if n == "lm_head.weight" and config.tie_word_embeddings:
                continue
            w = p.detach().numpy().astype(np.float32)
            heads = config.num_attention_heads if "q_proj" in n else config.num_key_value_heads
            rotary = "q_proj" in n or "k_proj" in n
            if rotary:
                w = permute(w, heads)
            if w.ndim == 1:
                writer.add_tensor(gguf_name(n), w)
                back = w
            else:
                q = gguf.quants.quantize(w, kind)
                writer.add_tensor(gguf_name(n), q, raw_dtype=kind)
                back = gguf.quants.dequantize(q, kind).reshape(w.shape)
            if rotary:
                back = unpermute(back, heads)
            p.copy_(torch.from_numpy(np.ascontiguousarray(back)).to(p.dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()


def copy_to(config, source, dtype):
    model = build(config, dtype)
    model.load_state_dict({k: v.to(dtype) for k, v in source.state_dict().items()})
    return model


def greedy(model, prompt):
    ids = list(prompt)
    gaps = []
    for _ in range(NEW_TOKENS):
        row = logits_of(model, ids)[-1]
        order = np.argsort(-row)
        gaps.append(row[order[0]] - row[order[1]])
        ids.append(int(order[0]))
    return ids[len(prompt):], min(gaps)


def attention_peak(model, ids):
    """Mean over layers, heads and later positions of the largest attention weight."""
    with torch.no_grad():
        maps = model(torch.tensor([ids]), output_attentions=True).attentions
    return float(np.mean([m[0, :, PROMPT_TOKENS // 2:].max(-1).values.mean().item() for m in maps]))


def damages(model, config):
    """Yields (what, undo) after damaging the model in place."""
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for name, p in model.named_parameters():
        kept = p.detach().clone()
        with torch.no_grad():
            p.zero_()
        yield "zeroed " + name
        with torch.no_grad():
            p.copy_(kept)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads,
                 "v_proj": config.num_key_value_heads, "o_proj": config.num_attention_heads}
        for key, count in heads.items():
            if key in name and count > 1:
                with torch.no_grad():
                    for h in range(count - 1):
                        a, b = slice(h * d, (h + 1) * d), slice((h + 1) * d, (h + 2) * d)
                        if key == "o_proj":
                            if p.dim() == 1:
                                continue
                            p[:, a], p[:, b] = kept[:, b], kept[:, a]
                        else:
                            p[a], p[b] = kept[b], kept[a]
                        yield f"swapped heads {h} and {h + 1} of {name}"
                        p.copy_(kept)


def make(name, options):
    folder = OUT / name
    for attempt in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config, store, shards = make_config(options)
        model64 = build(config, torch.float64)
        randomise(model64, seed=1000 * attempt + len(name))
        store_weights(model64, config, store, shards, folder)
        model32 = copy_to(config, model64, torch.float32)
        rng = np.random.default_rng(attempt)
        prompt = [int(x) for x in rng.integers(3, config.vocab_size, PROMPT_TOKENS)]
        truth = logits_of(model64, prompt)
        bound = max(32 * np.abs(logits_of(model32, prompt) - truth).max(), 4e-5 * truth.std())
        tokens, gap = greedy(model64, prompt)
        if gap <= 4 * bound or 2 in tokens:
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
            "least_damage_over_bound": float(least),
            "checkpoint": "model.gguf" if store.startswith(("F16", "Q")) else "."},
            indent=1) + "\n")
        print(f"{name}: bound {bound:.3g} std {truth.std():.3g} gap {gap:.3g} peak {peak:.2f} "
              f"least damage {least:.0f} x bound, attempt {attempt}")
        return
    raise SystemExit(f"{name}: no draw has gaps above 4 x the bound")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or GOLDENS:
        make(chosen, GOLDENS[chosen])
