#!/usr/bin/env python3
"""Makes tests/golden/gguf: tiny random checkpoints of every family as llama.cpp's own converter
writes them, and what Hugging Face transformers says of them. Rules and judge are those of
goldens_families.py.

Needs torch, transformers, tokenizers, safetensors, gguf, numpy, and llama.cpp's
convert_hf_to_gguf.py: from PyPI's source package llama-cpp-python 0.3.36, or --llama-cpp FOLDER.
Run:  python3 scripts/goldens_gguf.py [--llama-cpp FOLDER] [NAME ...]

The converter's check of the pre-tokenizer (a hash of published vocabularies) is answered "gpt-2".
It writes no K-quants: with `blocks`, its matrices are replaced by random blocks of the formats
named, and the judge gets what the gguf package says they are.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

import goldens_families as families
import goldens_quants as quants

OUT = families.OUT.parent / "gguf"
CACHE = pathlib.Path.home() / ".cache" / "pergola" / "llama-cpp-python"
PACKAGE = "llama-cpp-python==0.3.36"
ARCHITECTURES = {"Bloom": "bloom", "GPTBigCode": "starcoder", "GPT2": "gpt2", "Llama": "llama",
                 "Mistral": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3", "Gemma3": "gemma3"}
GPT, LLAMA = families.GPT, families.LLAMA
# type: what the converter is asked for. extra: keys of config.json that it wants to see.
GOLDENS = {
    "bloom": dict(
        family="Bloom", type="f32", vocab_size=97, hidden_size=30, n_layer=3, n_head=5,
        extra=dict(seq_length=128), **families.IDS),
    "starcoder": dict(
        family="GPTBigCode", type="f16", vocab_size=101, n_embd=36, n_head=9, **GPT),
    "gpt2": dict(
        family="GPT2", type="f32", vocab_size=97, n_embd=35, n_head=7, extra=dict(n_ctx=128),
        tie_word_embeddings=False, **GPT),
    "llama3": dict(
        family="Llama", type="f16", vocab_size=97, hidden_size=36, intermediate_size=72,
        num_attention_heads=9, num_key_value_heads=3, head_dim=8, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0,
                          high_freq_factor=4.0, original_max_position_embeddings=32), **LLAMA),
    "llama_linear": dict(
        family="Llama", type="f32", vocab_size=101, hidden_size=40, intermediate_size=56,
        num_attention_heads=5, num_key_value_heads=1, tie_word_embeddings=False,
        attention_bias=True, mlp_bias=True, rope_scaling=dict(rope_type="linear", factor=4.0),
        **LLAMA),
    "mistral": dict(
        family="Mistral", type="f16", vocab_size=97, hidden_size=42, intermediate_size=60,
        num_attention_heads=7, num_key_value_heads=1, head_dim=10, sliding_window=None,
        tie_word_embeddings=False, **LLAMA),
    "qwen2_q8_0": dict(
        family="Qwen2", type="q8_0", vocab_size=97, hidden_size=64, intermediate_size=96,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
        **LLAMA),
    "qwen3": dict(
        family="Qwen3", type="f32", vocab_size=97, hidden_size=40, intermediate_size=60,
        num_attention_heads=6, num_key_value_heads=3, head_dim=10, tie_word_embeddings=False,
        **LLAMA),
    "gemma3": dict(
        family="Gemma3", type="f16", vocab_size=101, hidden_size=40, intermediate_size=56,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, sliding_window=16,
        query_pre_attn_scalar=12, final_logit_softcapping=2.0, tie_word_embeddings=True,
        rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                             sliding_attention=families.LOCAL),
        **dict(LLAMA, num_hidden_layers=7)),
    # No cut of heads or of the MLP lies on a block of 256.
    "qwen3_k_quants": dict(
        family="Qwen3", type="f32", vocab_size=97, hidden_size=256, intermediate_size=256,
        num_attention_heads=8, num_key_value_heads=1, head_dim=32, tie_word_embeddings=False,
        **dict(LLAMA, num_hidden_layers=2),
        blocks={"token_embd": "Q6_K", "output": "Q4_K",
                "blk.0.attn_q": "Q2_K", "blk.0.attn_k": "IQ4_NL", "blk.0.attn_v": "Q5_0",
                "blk.0.attn_output": "Q4_K", "blk.0.ffn_gate": "Q3_K", "blk.0.ffn_up": "Q5_K",
                "blk.0.ffn_down": "Q6_K", "blk.1.attn_q": "Q5_1", "blk.1.attn_k": "Q4_K",
                "blk.1.attn_v": "Q6_K", "blk.1.attn_output": "Q3_K", "blk.1.ffn_gate": "Q4_K",
                "blk.1.ffn_up": "Q2_K", "blk.1.ffn_down": "Q5_K"}),
}


def llama_cpp():
    """The folder of llama.cpp with its converter, unpacked from PyPI's package."""
    folder = CACHE / "llama.cpp"
    if (folder / "convert_hf_to_gguf.py").exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    if not list(CACHE.glob("*.tar.gz")):
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                        "--no-binary", ":all:", "--dest", CACHE, PACKAGE], check=True)
    top = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
    subprocess.run(["tar", "xzf", *CACHE.glob("*.tar.gz"), "-C", CACHE, "--strip-components=2",
                    top + "conversion", top + "gguf-py", top + "convert_hf_to_gguf.py"], check=True)
    return folder


def convert(folder, kind, out, source):
    """Runs the converter in a process of its own, which uses its own gguf package."""
    # There are no sentencepiece files, which it looks for first with a package that may be missing;
    # and the family's own tokenizer class would add tokens to ours.
    code = ("import runpy, sys, transformers\n"
            "root = sys.argv[1]; sys.path[:0] = [root, root + '/gguf-py']\n"
            "from conversion.base import TextModel\n"
            "def no_file(*args): raise FileNotFoundError\n"
            "TextModel._create_vocab_sentencepiece = no_file\n"
            "TextModel.get_vocab_base_pre = lambda self, tokenizer: 'gpt-2'\n"
            "plain = lambda folder, **options: transformers.PreTrainedTokenizerFast(\n"
            "    tokenizer_file=str(folder) + '/tokenizer.json')\n"
            "transformers.AutoTokenizer.from_pretrained = plain\n"
            "sys.argv = ['convert'] + sys.argv[2:]\n"
            "runpy.run_path(root + '/convert_hf_to_gguf.py', run_name='__main__')\n")
    result = subprocess.run([sys.executable, "-c", code, str(source), str(folder), "--outtype", kind,
                             "--outfile", str(out)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(result.stderr)


def write_tokenizer(folder, size):
    """A byte-level vocabulary of `size` tokens; only their number matters here."""
    symbols = {chr(256 + i): i for i in range(size - 1)}
    symbols["ĀĀ"] = size - 1
    model = tokenizers.models.BPE(vocab=symbols, merges=[("Ā", "Ā")])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def write_huggingface(model, config, options, folder):
    """What the converter reads; the model's parameters become exactly what was stored."""
    tensors = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            # The converter adds Gemma's 1 to the weights of norms in the type they have.
            half = options["type"] == "f16" and p.dim() == 2
            dtype = torch.float16 if half else torch.float32
            tensors[name] = p.detach().to(dtype).contiguous()
            p.copy_(tensors[name].to(p.dtype))
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written.update(options.get("extra", {}))
    (folder / "config.json").write_text(json.dumps(written))
    write_tokenizer(folder, config.vocab_size)


def scaled_blocks(name, shape, rng):
    """Random blocks of a format whose values have mean near 0 and the deviation of a matrix."""
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    at, halves = quants.HALVES[name]
    blocks = quants.random_blocks(name, shape[0] * shape[1] // values, rng)
    # The minimum that takes the mean quant to 0.
    centre = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}.get(name, 0)

    def with_scale(scale):
        pair = np.array([scale, scale * centre][:halves], "<f2").view(np.uint8)
        blocks[:, at:at + 2 * halves] = pair
        rows = blocks.reshape(shape[0], shape[1] // values * size)
        return rows, gguf.quants.dequantize(rows, kind).reshape(shape)

    return with_scale(1.2 / shape[1] ** 0.5 / with_scale(1.0)[1].std())


def replace_matrices(path, formats, rng):
    """Rewrites a GGUF file with random blocks in place of the matrices named."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    out = path.with_suffix(".new")
    writer = gguf.GGUFWriter(out, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        name = formats.get(tensor.name.removesuffix(".weight"))
        if name is None or tensor.data.ndim != 2:
            writer.add_tensor(tensor.name, tensor.data)
            continue
        rows, values = scaled_blocks(name, tensor.data.shape, rng)
        if tensor.name in ("token_embd.weight", "output.weight"):
            # Three times as large, as goldens_families.py has them.
            at, halves = quants.HALVES[name]
            blocks = rows.reshape(-1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1])
            scales = blocks[:, at:at + 2 * halves].copy().view("<f2") * np.float16(2.5)
            blocks[:, at:at + 2 * halves] = scales.view(np.uint8)
        writer.add_tensor(tensor.name, rows, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out.rename(path)


def take_values(model, config, path, architecture):
    """Sets the model's matrices to what the file's blocks are. Only where nothing is reordered."""
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() != 2 or (name == "lm_head.weight" and config.tie_word_embeddings):
                continue
            tensor = stored[names.get_name(name, try_suffixes=(".weight", ".bias"))]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(p.shape)
            p.copy_(torch.from_numpy(values.astype(np.float64)).to(p.dtype))


def draw(options, attempt, name, folder, source):
    """One try: (model in f64, the same in f32, prompt, configuration)."""
    model = {k: v for k, v in options.items() if k not in ("type", "extra", "blocks")}
    model64, _ = families.build(model, torch.float64)
    model32, config = families.build(model, torch.float32)
    families.randomise(model64, config, 1.0, seed=1000 * attempt + len(name))
    path = folder / "model.gguf"
    with tempfile.TemporaryDirectory() as temporary:
        # The converter writes the folder's name into the file.
        checkpoint = pathlib.Path(temporary) / name
        checkpoint.mkdir()
        write_huggingface(model64, config, options, checkpoint)
        convert(checkpoint, options["type"], path, source)
    if "blocks" in options:
        replace_matrices(path, options["blocks"], np.random.default_rng(attempt))
    if "blocks" in options or options["type"] == "q8_0":
        take_values(model64, config, path, ARCHITECTURES[options["family"]])
    model32.load_state_dict({k: v.float() for k, v in model64.state_dict().items()})
    rng = np.random.default_rng(attempt)
    prompt = [int(x) for x in rng.integers(3, config.vocab_size, families.PROMPT_TOKENS)]
    return model64, model32, prompt, config


def make(name, options, source):
    folder = OUT / name
    for attempt in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model64, model32, prompt, config = draw(options, attempt, name, folder, source)
        truth = families.logits_of(model64, prompt)
        bound = max(32 * np.abs(families.logits_of(model32, prompt) - truth).max(),
                    4e-5 * truth.std())
        tokens, gap = families.greedy(model64, prompt)
        if gap <= 4 * bound or 2 in tokens or len(set(tokens)) < families.DISTINCT_TOKENS:
            continue
        peak = families.attention_peak(model64, prompt)
        if peak < 0.25:
            raise SystemExit(f"{name}: attention is nearly uniform (mean peak {peak:.3f})")
        least = np.inf
        for what in families.damages(model64, config):
            seen = np.abs(families.logits_of(model64, prompt) - truth).max()
            least = min(least, seen / bound)
            if seen <= bound:
                raise SystemExit(f"{name}: the golden does not see: {what}")
        truth.astype("<f4").tofile(folder / "logits.f32")
        # Digits that do not depend on how many threads multiplied.
        digits = lambda value: float(f"{value:.8g}")
        (folder / "golden.json").write_text(json.dumps({
            "judge": f"transformers {transformers.__version__}, torch {torch.__version__}, float64",
            "converter": PACKAGE, "prompt": prompt, "greedy": tokens, "bound": digits(bound),
            "logits_std": digits(truth.std()), "smallest_gap": digits(gap),
            "attention_peak": digits(peak), "least_damage_over_bound": digits(least),
            "checkpoint": "model.gguf"}, indent=1) + "\n")
        print(f"{name}: bound {bound:.3g} std {truth.std():.3g} gap {gap:.3g} peak {peak:.2f} "
              f"least damage {least:.0f} x bound, attempt {attempt}", flush=True)
        return
    raise SystemExit(f"{name}: no draw has gaps above 4 x the bound")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    chosen = parser.parse_args()
    for golden in chosen.names or GOLDENS:
        make(golden, GOLDENS[golden], chosen.llama_cpp or llama_cpp())
