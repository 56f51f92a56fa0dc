#!/usr/bin/env python3
"""Makes tests/golden/quants: blocks of every GGUF format, random but for finite scales, and the
values the gguf package says they are.

Judge: gguf.quants.dequantize. Needs gguf, numpy.
Run:  python3 scripts/goldens_quants.py

TYPE.blocks holds the blocks, TYPE.f32 their values.
"""
import pathlib

import gguf
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "quants"
# Format: (offset of the f16 numbers of a block, how many).
HALVES = {
    "Q8_0": (0, 1), "Q4_0": (0, 1), "Q4_1": (0, 2), "Q5_0": (0, 1), "Q5_1": (0, 2),
    "IQ4_NL": (0, 1), "Q2_K": (80, 2), "Q3_K": (108, 1), "Q4_K": (0, 2), "Q5_K": (0, 2),
    "Q6_K": (208, 1)}
VALUES = 1024


def random_blocks(name, count, rng):
    """[count, bytes of a block]: any bits as quants and small scales, finite f16 numbers."""
    at, halves = HALVES[name]
    kind = gguf.GGMLQuantizationType[name]
    blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    scales = rng.standard_normal((count, halves)) * 0.1
    blocks[:, at:at + 2 * halves] = scales.astype("<f2").view(np.uint8)
    return blocks


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(HALVES):
        kind = gguf.GGMLQuantizationType[name]
        count = VALUES // gguf.GGML_QUANT_SIZES[kind][0]
        blocks = random_blocks(name, count, np.random.default_rng(seed))
        values = gguf.quants.dequantize(blocks.reshape(-1), kind)
        assert values.shape == (VALUES,) and np.isfinite(values).all()
        blocks.tofile(OUT / f"{name.lower()}.blocks")
        values.astype("<f4").tofile(OUT / f"{name.lower()}.f32")


if __name__ == "__main__":
    main()
