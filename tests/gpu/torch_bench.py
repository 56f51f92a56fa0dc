#!/usr/bin/env python3
"""Decode by Hugging Face transformers on this GPU, beside ours: the same shape with random weights
in bf16, static cache, compiled forward with CUDA graphs. Prints RESULT lines (tests/gpu/report.h).

transformers' step is forward, argmax and the copy of the token into the next input; ours
(results.tsv of the same run) is all of a worker's step, its host's work included.
"""
import argparse
import statistics
import time

import torch
import transformers

SHAPES = {  # as model/shape_spec.cc and tests/gpu/random_checkpoint.cc have them
    "llama-1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                     num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
                     tie_word_embeddings=True),
    "llama-3-8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                       num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
                       tie_word_embeddings=False),
}
GOALS = {1: 1.2, 32: 2.0}
PROMPT = 64
WARM, REPEATS = 6, 30


def report(what, result, goal, verdict):
    print("\t".join(["RESULT", "torch", what, result, goal, verdict]), flush=True)


def our_seconds(path, shape, batch):
    """Of the line "SHAPE bf16 decode, batch N": "..., 4.27 ms, 234 tokens/s"."""
    with open(path) as file:
        for line in file:
            fields = line.rstrip("\n").split("\t")
            if fields[:2] == ["model", f"{shape} bf16 decode, batch {batch}"]:
                return float(fields[2].split(" ms")[0].split()[-1]) * 1e-3
    return None


def step_seconds(model, batch):
    cache = transformers.StaticCache(config=model.config, max_cache_len=128)
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    ids = torch.randint(0, model.config.vocab_size, (batch, PROMPT), device="cuda")
    positions = torch.arange(PROMPT, device="cuda").unsqueeze(0)
    logits = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True,
                   logits_to_keep=1).logits
    token = logits[:, -1:].argmax(-1)
    position = positions[:, -1:] + 1
    times = []
    for step in range(WARM + REPEATS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        torch.compiler.cudagraph_mark_step_begin()
        logits = forward(input_ids=token, position_ids=position, past_key_values=cache,
                         use_cache=True).logits
        token = logits[:, -1:].argmax(-1).clone()
        position = position + 1
        torch.cuda.synchronize()
        if step >= WARM:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="results.tsv with our times")
    args = parser.parse_args()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    report("versions", versions, "", "-")
    torch.manual_seed(1)
    # The smaller first: there may be no time for both.
    for name, shape in SHAPES.items():
        config = transformers.LlamaConfig(max_position_embeddings=8192, rope_theta=500000.0,
                                          **shape)
        with torch.device("cuda"):
            torch.set_default_dtype(torch.bfloat16)
            model = transformers.LlamaForCausalLM(config).eval()
            torch.set_default_dtype(torch.float32)
        with torch.no_grad():
            for batch in (1, 32):
                theirs = step_seconds(model, batch)
                torch.compiler.reset()
                ours = our_seconds(args.ours, name, batch)
                words = f"{theirs * 1e3:.2f} ms, {batch / theirs:.0f} tokens/s"
                if ours is None:
                    report(f"{name} decode, batch {batch}", words + "; ours is missing", "", "-")
                    continue
                ratio = theirs / ours
                report(f"{name} decode, batch {batch}",
                       f"ours is {ratio:.2f} x as fast; theirs: {words}", f"{GOALS[batch]} x",
                       "reached" if ratio >= GOALS[batch] else "below")
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
