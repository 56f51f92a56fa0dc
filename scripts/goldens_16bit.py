#!/usr/bin/env python3
"""Makes tests/golden/sixteen_bit.json: what activations in 16 bits cost transformers.

For every golden whose checkpoint is bf16: the largest difference of a logit between transformers in
bf16 (and in f16) and the golden's logits, over all prompt positions; and how far apart the best two
logits are at each greedy token, in float64. The LM head's product is left in f32, as a GPU's is
here. The judge rounds wherever a GPU does here and in more places (residual stream, norms'
insides), so a GPU's difference is noise of no larger size; tests allow twice the judge's largest.
One thread and ATen's plain loops, so that every machine writes the same file.
Run:  python3 scripts/goldens_16bit.py
"""
import json
import os
import pathlib

os.environ["ATEN_CPU_CAPABILITY"] = "default"

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
FOLDERS = ["families", "llama"]
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def tensors_of(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(str(file)))
    return tensors


def build(folder, tensors, dtype):
    """The model with the file's weights in `dtype`, whatever names the file has for them."""
    config = transformers.AutoConfig.from_pretrained(str(folder))
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.to(dtype).eval()
    state = dict(model.named_parameters())
    prefix = model.base_model_prefix + "."
    embeddings = ("wte.weight", "embed_tokens.weight", "word_embeddings.weight")
    tied = {"lm_head.weight"} | {n for n in state if n.endswith(embeddings)}
    seen = set()
    with torch.no_grad():
        for name, tensor in tensors.items():
            full = name if name in state else prefix + name
            if full not in state and config.tie_word_embeddings and name in tied:
                full = next(n for n in tied if n in state)
            if full not in state:
                continue  # buffers
            state[full].copy_(tensor.to(dtype))
            seen.add(full)
    if set(state) - seen:
        raise SystemExit(f"{folder.name}: nothing for {sorted(set(state) - seen)}")
    if dtype not in (torch.float32, torch.float64):
        head = torch.nn.Linear(1, 1, bias=False)
        head.weight = torch.nn.Parameter(model.get_output_embeddings().weight.detach().float())
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        model.set_output_embeddings(head)
    return model


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def judge(folder):
    golden = json.loads((folder / "golden.json").read_text())
    tensors = tensors_of(folder)
    if any(t.dtype != torch.bfloat16 for t in tensors.values() if t.dim() == 2):
        return None
    prompt, greedy = golden["prompt"], golden["greedy"]
    truth = np.fromfile(folder / "logits.f32", "<f4").reshape(len(prompt), -1).astype(np.float64)
    exact = logits_of(build(folder, tensors, torch.float64), prompt + greedy)
    if np.abs(exact[:len(prompt)] - truth).max() > golden["bound"]:
        raise SystemExit(f"{folder.name}: the model built here is not the golden's")
    best = np.sort(exact[len(prompt) - 1:-1], axis=1)
    result = {"gaps": [float(f"{gap:.3g}") for gap in best[:, -1] - best[:, -2]]}
    for name, dtype in TYPES.items():
        off = np.abs(logits_of(build(folder, tensors, dtype), prompt) - truth).max()
        result[name] = float(f"{off:.3g}")
    print(folder.name, result["bf16"], result["f16"], "std", truth.std())
    return result


if __name__ == "__main__":
    goldens = {}
    for group in FOLDERS:
        for folder in sorted((ROOT / group).iterdir()):
            if (folder / "config.json").exists():
                found = judge(folder)
                if found is not None:
                    goldens[folder.name] = found
    text = {"judge": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "goldens": goldens}
    (ROOT / "sixteen_bit.json").write_text(json.dumps(text, indent=1) + "\n")
