#!/usr/bin/env python3
"""Makes tests/golden/sampling/golden.json: what transformers' own logits processors and warpers keep.

Each case is a row of logits (from a seed, by the generator below, which the C++ test repeats), a history and parameters. The
judge: transformers' processors on f32 in the order of GenerationMixin._get_logits_processor, then its warpers on f64, and
torch's log_softmax. Presence and frequency penalties have no processor there: OpenAI's published formula in numpy. A case
whose answer hangs on rounding (a cut within MARGIN of an id's place, or a tie at the cut, where transformers keeps all) is
thrown away and drawn again, so that the test may demand equality.
"""
import json
import pathlib
import random

import numpy as np
import torch
import transformers
from transformers.generation import logits_process as lp

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "sampling"
CASES = 48
MARGIN = 1e-6
MOST_PROBABILITIES = 150  # of longer lists only the ids are kept
MASK64 = (1 << 64) - 1


def split_mix(state):
    """SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        yield z ^ (z >> 31)


def make_logits(seed, vocabulary):
    """The sum of the four 16-bit words of a draw, centred, in units of 2^-14: near normal, deviation 2.3, exact in f32."""
    draws = split_mix(seed)
    sums = [sum((z >> s) & 0xFFFF for s in (0, 16, 32, 48)) for z in (next(draws) for _ in range(vocabulary))]
    return np.array([(k - 131070) / 16384 for k in sums], dtype=np.float32)


def processed(case, logits):
    """Steps 1 to 6 of kernels/sample.h, in f32."""
    ids = torch.tensor([case["history"]], dtype=torch.long)
    scores = torch.tensor(logits)[None]
    if case["bias"]:
        scores = lp.SequenceBiasLogitsProcessor({(i,): b for i, b in case["bias"]})(ids, scores)
    if case["repetition_penalty"] != 1:
        scores = lp.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])(ids, scores)
    counts = np.bincount(np.array(case["history"][case["prompt_tokens"]:], dtype=np.int64), minlength=len(logits))
    penalty = counts.astype(np.float32) * np.float32(case["frequency_penalty"]) + (counts > 0) * np.float32(case["presence_penalty"])
    scores = scores - torch.tensor(penalty.astype(np.float32))[None]
    if case["no_repeat_ngram_size"]:
        scores = lp.NoRepeatNGramLogitsProcessor(case["no_repeat_ngram_size"])(ids, scores)
    if case["min_new_tokens"]:
        processor = lp.MinNewTokensLengthLogitsProcessor(case["prompt_tokens"], case["min_new_tokens"], case["suppressed"])
        scores = processor(ids, scores)
    if case["mask_ids"]:
        scores = lp.PrefixConstrainedLogitsProcessor(lambda _batch, _ids: case["mask_ids"], 1)(ids, scores)
    return scores


def kept_ids(scores):
    return torch.nonzero(torch.isfinite(scores[0])).flatten().tolist()


def warp(case, scores):
    """Steps 7 to 10 on f64; None where a cut is in doubt."""
    scores = scores.double()
    if case["temperature"] != 1:
        scores = lp.TemperatureLogitsWarper(case["temperature"])(None, scores)
    before = scores
    if case["top_k"]:
        scores = lp.TopKLogitsWarper(case["top_k"])(None, scores)
        if len(kept_ids(scores)) > case["top_k"]:
            return None
    if case["top_p"] < 1:
        p = torch.softmax(scores, -1)[0].sort(descending=True).values.cumsum(0)
        if (p - case["top_p"]).abs().min() < MARGIN:
            return None
        scores = lp.TopPLogitsWarper(case["top_p"])(None, scores)
    if case["min_p"] > 0:
        p = torch.softmax(scores, -1)[0]
        if (p - case["min_p"] * p.max()).abs().min() < MARGIN * p.max():
            return None
        scores = lp.MinPLogitsWarper(case["min_p"])(None, scores)
    if case["typical_p"] < 1:
        kept = kept_ids(scores)
        log_p = torch.log_softmax(scores[0, kept], -1)
        distance = (-log_p - -(log_p * log_p.exp()).sum()).abs()
        order = distance.sort()
        sums = log_p.exp()[order.indices].cumsum(0)
        at = int((sums < case["typical_p"]).sum())
        if (sums - case["typical_p"]).abs().min() < MARGIN:
            return None
        if at + 1 < len(kept) and order.values[at + 1] - order.values[at] < MARGIN:
            return None
        # transformers' own entropy is nan where a filter before has left minus infinities; its rule on the survivors alone.
        warped = lp.TypicalLogitsWarper(case["typical_p"])(None, scores[:, kept])
        scores = torch.full_like(scores, -torch.inf)
        scores[0, kept] = warped[0]
    # Equal logits on both sides of a cut: which of them stays is a matter of convention.
    kept = set(kept_ids(scores))
    dropped = [float(before[0, i]) for i in range(before.shape[1]) if i not in kept and torch.isfinite(before[0, i])]
    if set(float(before[0, i]) for i in kept) & set(dropped):
        return None
    return scores


def make_case(draw, number, seed):
    """Random parameters; the first cases have one parameter each."""
    def f32(x):
        return float(np.float32(x))
    vocabulary = draw.choice([17, 97, 307, 1021])
    length = draw.randint(8, 60)
    few = [draw.randrange(vocabulary) for _ in range(6)]
    history = [draw.choice(few) if draw.random() < 0.7 else draw.randrange(vocabulary) for _ in range(length)]
    case = dict(seed=seed, vocabulary=vocabulary, history=history, prompt_tokens=draw.randint(1, length), bias=[],
                repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, no_repeat_ngram_size=0,
                min_new_tokens=0, suppressed=[], mask_ids=[], temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)
    # The likeliest ids are those worth forbidding, and a history without them shows no penalty.
    likely = np.argsort(-make_logits(seed, vocabulary))[:12].tolist()
    case["history"][draw.randrange(length)] = likely[0]
    case["history"][-1] = likely[1]
    choices = dict(
        bias=lambda: sorted([i, draw.choice([f32(draw.uniform(-9, 9)), f32(draw.uniform(-9, 9)), -100.0])]
                            for i in draw.sample(range(vocabulary), 5)),
        repetition_penalty=lambda: f32(draw.choice([draw.uniform(1.05, 2), draw.uniform(0.5, 0.95)])),
        presence_penalty=lambda: f32(draw.uniform(-2, 2)),
        frequency_penalty=lambda: f32(draw.uniform(-2, 2)),
        no_repeat_ngram_size=lambda: draw.randint(1, 4),
        min_new_tokens=lambda: length - case["prompt_tokens"] + draw.randint(0, 2),
        mask_ids=lambda: sorted(draw.sample(range(vocabulary), max(3, vocabulary // 3))),
        temperature=lambda: f32(draw.uniform(0.3, 2.5)),
        top_k=lambda: draw.randint(3, vocabulary // 2),
        top_p=lambda: f32(draw.uniform(0.2, 0.99)),
        min_p=lambda: f32(draw.uniform(0.005, 0.3)),
        typical_p=lambda: f32(draw.uniform(0.2, 0.97)))
    names = list(choices)
    chosen = [names[number]] if number < len(names) else draw.sample(names, draw.randint(2, 7))
    for name in chosen:
        case[name] = choices[name]()
    if "min_new_tokens" in chosen:
        case["suppressed"] = sorted(likely[:3])
    return case


def judge(case):
    """The case with its answers, or None where they hang on rounding."""
    logits = make_logits(case["seed"], case["vocabulary"])
    scores = processed(case, logits)
    order = scores[0].sort(descending=True)
    if not torch.isfinite(order.values[1]) or order.values[0] - order.values[1] < 1e-4:
        return None
    warped = warp(case, scores)
    if warped is None:
        return None
    kept = kept_ids(warped)
    probabilities = torch.softmax(warped[0], -1)[kept]
    log_probabilities = torch.log_softmax(torch.tensor(logits).double(), -1)
    best = log_probabilities.sort(descending=True, stable=True)
    top = min(20, case["vocabulary"])
    rounded = [round(float(p), 9) for p in probabilities] if len(kept) <= MOST_PROBABILITIES else []
    return dict(case, greedy=int(order.indices[0]), kept=kept, probabilities=rounded,
                greedy_logprob=float(log_probabilities[int(order.indices[0])]), top_ids=best.indices[:top].tolist(),
                top_logprobs=[float(x) for x in best.values[:top]])


def main():
    draw = random.Random(20261122)
    cases = []
    seed = 1
    while len(cases) < CASES:
        seed += 1
        case = judge(make_case(draw, len(cases), seed))
        if case is not None:
            cases.append(case)
    OUT.mkdir(parents=True, exist_ok=True)
    judges = f"transformers {transformers.__version__}, torch {torch.__version__}"
    rows = ",\n".join(json.dumps(c) for c in cases)
    (OUT / "golden.json").write_text(f'{{"judge": "{judges}",\n"cases": [\n{rows}\n]}}\n')
    print(f"{len(cases)} cases, kept " + " ".join(str(len(c["kept"])) for c in cases))


main()
