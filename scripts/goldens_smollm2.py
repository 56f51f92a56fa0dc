#!/usr/bin/env python3
"""Makes tests/golden/smollm2/golden.json: what transformers says of the demo model's dequantised
weights.

transformers reads the GGUF itself (dequantised to f32; its llama reader undoes the q/k row order).
Logits are kept for the last prompt position as the 64 largest (id, value) pairs plus 64 spread ids;
greedy tokens as far as every gap between the best two logits exceeds 4 x the bound.
Run:  python3 scripts/goldens_smollm2.py [GGUF]
"""
import json
import pathlib
import sys

import numpy as np
import torch
import transformers

# The bound is measured rounding, which depends on how many threads share a sum.
torch.set_num_threads(1)

GGUF = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                    pathlib.Path.home() / ".cache/pergola/SmolLM2-135M-Instruct.Q4_1.gguf")
ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "smollm2" / "golden.json"
PROMPTS = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
}
NEW_TOKENS = 48

model32 = transformers.AutoModelForCausalLM.from_pretrained(
    str(GGUF.parent), gguf_file=GGUF.name, dtype=torch.float32, attn_implementation="eager").eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(str(GGUF.parent), gguf_file=GGUF.name)
model64 = transformers.LlamaForCausalLM(model32.config).to(torch.float64).eval()
model64.load_state_dict({k: v.double() for k, v in model32.state_dict().items()})


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].double().numpy()


cases = []
for text, known in PROMPTS.items():
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    print("ids", prompt, "known", known)
    truth = logits(model64, prompt)
    bound = max(32 * np.abs(logits(model32, prompt) - truth).max(), 4e-5 * truth.std())
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        row = logits(model64, ids)
        order = np.argsort(-row)
        if row[order[0]] - row[order[1]] <= 4 * bound:
            break
        ids.append(int(order[0]))
    order = [int(i) for i in np.argsort(-truth)[:64]]
    spread = [int(i) for i in np.linspace(0, len(truth) - 1, 64)]
    cases.append({"text": text, "prompt": prompt, "greedy": ids[len(prompt):],
                  "greedy_text": tokenizer.decode(ids[len(prompt):]), "bound": float(bound),
                  "logits_std": float(truth.std()),
                  "logits": {str(i): float(truth[i]) for i in order + spread}})
    print(text, "->", tokenizer.decode(ids[len(prompt):]), "bound", bound, "tokens",
          len(ids) - len(prompt))
OUT.parent.mkdir(parents=True, exist_ok=True)
OUT.write_text(json.dumps({"judge": f"transformers {transformers.__version__}, float64",
                           "cases": cases}, indent=1) + "\n")
