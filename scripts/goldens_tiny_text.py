#!/usr/bin/env python3
"""Makes tests/golden/tiny_text: a tiny random Llama with a byte-level tokenizer, for end-to-end
tests without downloads.

8 heads, 4 KV heads and 4 layers, so that TP 1 to 8 and PP 1 to 4 fit; a context of 4,096 tokens, so
that streams last long enough to be interrupted. golden.json holds what transformers generates
greedily for one prompt, text and ids.
"""
import json
import pathlib

import numpy as np
import tokenizers
import torch
import transformers

import goldens_llama

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "tiny_text"
PROMPT = "A pergola carries blooms."
VOCABULARY = 300

OUT.mkdir(parents=True, exist_ok=True)
alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = tokenizers.decoders.ByteLevel()
trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet,
    show_progress=False)
tokenizer.train_from_iterator(
    [(PROMPT + " Columns and beams carry blooms over the garden path. ") * 20], trainer)
assert tokenizer.get_vocab_size() == VOCABULARY, tokenizer.get_vocab_size()
tokenizer.save(str(OUT / "tokenizer.json"))

config, _, _ = goldens_llama.make_config(dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
    num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=4096,
    tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
for attempt in range(200):
    model = goldens_llama.build(config, torch.float64)
    goldens_llama.randomise(model, seed=attempt)
    goldens_llama.store_weights(model, config, "bf16", 1, OUT)
    prompt = tokenizer.encode(PROMPT).ids
    truth = goldens_llama.logits_of(model, prompt)
    model32 = goldens_llama.copy_to(config, model, torch.float32)
    bound = max(32 * np.abs(goldens_llama.logits_of(model32, prompt) - truth).max(),
                4e-5 * truth.std())
    greedy, gap = goldens_llama.greedy(model, prompt)
    if gap > 4 * bound and 0 not in greedy:
        break
else:
    raise SystemExit("no draw has gaps above 4 x the bound")
(OUT / "generation_config.json").write_text(
    json.dumps({"eos_token_id": 0, "do_sample": False}) + "\n")
(OUT / "golden.json").write_text(json.dumps({
    "judge": (f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, "
              "float64"),
    "text": PROMPT, "prompt": prompt, "greedy": greedy, "greedy_text": tokenizer.decode(greedy),
    "bound": float(bound), "smallest_gap": float(gap)}, indent=1) + "\n")
print(f"attempt {attempt} gap {gap:.3g} bound {bound:.3g}: {tokenizer.decode(greedy)!r}")
