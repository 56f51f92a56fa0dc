#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/: tiny byte-level BPE tokenizers and what Hugging Face tokenizers
makes of texts.

Run with a Python that has `tokenizers` and `gguf`:  scripts/goldens_tokenizer.py [--gguf FILE]
The result is deterministic. texts.json holds the texts of all. NAME.golden.json holds "encode":
their ids without, and "encode_special": of the first 40 with special tokens added; "decode": [ids,
text, text without special tokens]. smollm2.golden.json has no tokenizer file beside it: its
vocabulary is the demo model's.
"""
import argparse
import json
import pathlib
import random

import gguf
import tokenizers
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "tokenizer"
TYPES_SPECIAL = {2, 3}  # llama.cpp: unknown, control

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"

CORPUS = """The capital of France is Paris. It's the city that we've seen; they'll say I'm wrong, \
you're right, he'd go.
def main(argc, argv):\n    for i in range(10):\n\
        print("hello, world", i * 3.14159)\n    return 0
int main() { std::vector<int> values{1, 2, 3, 1000, 2024}; return values.size(); }   // comment
Die Größe der Straße überrascht. Où est la bibliothèque ? ¿Dónde está el niño? \
Это простой русский текст для обучения.
これは日本語の文章です。東京は日本の首都です。中文文本用于训练。한국어 텍스트도 있습니다. नमस्ते दुनिया। مرحبا بالعالم، كيف حالك؟
"""


def corpus_lines():
    rng = random.Random(7)
    words = CORPUS.split(" ")
    yield CORPUS
    for _ in range(300):
        yield " ".join(rng.choice(words) for _ in range(30))


HAND = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\r\n\r\n", " \r\n x", "a",
    " a", "  a", "a ", "a  ", "Hello, world!", "The capital of France is",
    "It's we've they'll I'm you're he'd can't", "IT'S WE'VE THEY'LL I'M", "'s", "'S", "'\u017f",
    "x'\u017f y", "'\u017fa", "\u017f", "\u212a", "'ll'LL'Ll'lL", "''s", "' s", "'", "''", "1",
    "12", "123", "1234", "12345", "1234567890", " 1 23 456", "3.14159", "x1y22z333", "²³¹", "½¼",
    "Ⅷ", "٠١٢٣", "１２３", "一二三", "a1 b2\n3", "def f(x):\n    return x * 2\n\n\n",
    "if (a && b) {\n\t\treturn;\n}\n", "#include <vector>\n", "https://example.com/a?b=c&d=e#f",
    "foo_bar.baz::qux->quux", "....", "!!!???", "(parenthesis)", "(( ))", "[x|y]", "a|b|c",
    "a.b,c!d?e", "。，、।۔،", "你好，世界。", "नमस्ते।", "مرحبا، كيف؟", "Grüße", "Gru\u0308\u00dfe",
    "e\u0301", "\u00e9", "A\u030a", "\u1100\u1161\u11a8", "\uac01", "q\u0323\u0307",
    "q\u0307\u0323", "\u0301", "\u0344", "\ufb01", "\u2126", "\u212b", "👍", "👍🏽", "👩‍👩‍👧‍👦", "🇫🇷🇩🇪",
    "❤️", "🏳️‍🌈", "a👍b", " 👍 ", "\u200b", "\u200d", "\ufeff", "\u00a0", " \u00a0 x", "\u3000",
    "\u2028", "\u0085", "\u180e", "\u202e", "\u0000", "a\u0000b", "\u0001\u0002", "\x7f", "\u0080",
    "\u00ad", "\ufffd", "\ud7ff", "\ue000", "\uffff", "\U0010ffff", "\U00010000", "x" * 70,
    " " * 40, "\n" * 20, " " * 17 + "x", "\t" * 9 + "y", "ab" * 50, "=" * 33, "a\u0301" * 12,
    "日本語" * 9, "hello   world  \n\n  foo", "trailing   ", "\n\nx\n \n  y", "<|bos|>",
    "<|bos|><|eot|>", "a<|eot|>b", "a <|eot|> b", "<|eot|", "<|eot|>x<|eot|>", "<|strip|>",
    "a  <|strip|>  b", " \n<|strip|>\t<|strip|> ", "word", "word words word.", "aword", "word's",
    "sword", " word ", "wo\u0301rd", "Café", "Cafe\u0301", "xCafe\u0301y", "<tool>",
    "<tool>x</tool>", "a <tool> b", "<<tool>>", "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n",
]

# Blocks to draw characters from; all assigned well before Unicode 14, which every library at hand
# knows.
BLOCKS = [(0x20, 0x7e), (0x20, 0x7e), (0xa1, 0x17e), (0x370, 0x3ff), (0x400, 0x4ff), (0x5d0, 0x5ea),
          (0x620, 0x64a), (0x900, 0x939), (0x0e01, 0x0e2e), (0x1100, 0x11ff), (0x2010, 0x2027),
          (0x2030, 0x205e), (0x2150, 0x2182), (0x2460, 0x24ff), (0x3041, 0x3090), (0x4e00, 0x9fa5),
          (0xac00, 0xd7a3), (0x1f600, 0x1f64f), (0x300, 0x36f)]


def texts():
    result = list(HAND)
    rng = random.Random(20261121)
    for _ in range(70):
        pair = chr(rng.randrange(0x20, 0x7f)) + chr(rng.randrange(0x20, 0x7f))
        result.append(pair * rng.randrange(1, 3))
    for _ in range(60):
        length = rng.randrange(1, 24)
        result.append("".join(chr(rng.randint(*rng.choice(BLOCKS))) for _ in range(length)))
    pieces = [" ", "  ", "\n", "\t", "\r\n", "'s", "'T", "a", "The", "12", "7", ".", "!?", "é",
              "日本", "👍", "\u00a0", "_", "(", ")"]
    for _ in range(60):
        result.append("".join(rng.choice(pieces) for _ in range(rng.randrange(2, 14))))
    unique = list(dict.fromkeys(result))
    # Lone surrogates cannot be written as UTF-8.
    return [t for t in unique if not any(0xd800 <= ord(c) < 0xe000 for c in t)]


def train(pre_tokenizer, vocab_size, alphabet=True):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    initial = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=initial,
                                  show_progress=False)
    tokenizer.train_from_iterator(corpus_lines(), trainer)
    return tokenizer


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=invert)


def byte_level(use_regex=False, prefix=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def add_tokens(tokenizer):
    tokenizer.add_special_tokens([
        AddedToken("<|bos|>", special=True, normalized=False),
        AddedToken("<|eot|>", special=True, normalized=False),
        AddedToken("<|strip|>", special=True, normalized=False, lstrip=True, rstrip=True)])
    tokenizer.add_tokens([
        AddedToken("word", single_word=True, normalized=False),
        AddedToken("Caf\u00e9", normalized=True),
        AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=True)])
    return tokenizer


def with_template(tokenizer):
    bos = tokenizer.token_to_id("<|bos|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|bos|> $A", pair="<|bos|> $A $B",
                                      special_tokens=[("<|bos|>", bos)])])
    return tokenizer


def edited(tokenizer, edit):
    document = json.loads(tokenizer.to_str())
    edit(document)
    return Tokenizer.from_str(json.dumps(document))


def drop_merges(document, share):
    """Removes some merges but keeps their tokens, so that ignore_merges shows."""
    merges = document["model"]["merges"]
    products = {"".join(m) for m in merges}
    parts = {p for m in merges for p in m}
    leaves = sorted(products - parts)
    gone = set(leaves[::share])
    document["model"]["merges"] = [m for m in merges if "".join(m) not in gone]
    document["model"]["ignore_merges"] = True


def legacy_merges(document):
    document["model"]["merges"] = [" ".join(m) for m in document["model"]["merges"]]


def unknown(document, fuse):
    vocab = document["model"]["vocab"]
    vocab["<unk>"] = max(vocab.values()) + 1
    document["model"].update(unk_token="<unk>", fuse_unk=fuse)


def families():
    yield "gpt2", lambda: train(byte_level(use_regex=True), 500)
    yield "gpt2_prefix_space", lambda: add_tokens(
        train(byte_level(use_regex=True, prefix=True), 400))
    yield "llama3", lambda: edited(
        with_template(add_tokens(
            train(pre_tokenizers.Sequence([split(LLAMA3), byte_level()]), 600))),
        lambda d: drop_merges(d, 3))

    def qwen2():
        tokenizer = train(pre_tokenizers.Sequence([split(QWEN2), byte_level()]), 500)
        tokenizer.normalizer = normalizers.NFC()
        return add_tokens(tokenizer)
    yield "qwen2", qwen2
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                      byte_level(use_regex=True)])
    yield "starcoder", lambda: add_tokens(train(digits, 500))
    yield "missing_bytes", lambda: edited(train(digits, 400, alphabet=False), legacy_merges)
    yield "unknown", lambda: edited(train(digits, 400, alphabet=False), lambda d: unknown(d, False))
    yield "unknown_fused", lambda: edited(train(digits, 400, alphabet=False),
                                          lambda d: unknown(d, True))
    yield "bloom", lambda: train(pre_tokenizers.Sequence([split(BLOOM), byte_level()]), 500)

    def behaviors():
        return pre_tokenizers.Sequence([
            pre_tokenizers.Split("|", behavior="removed"), split(r"[0-9]", "contiguous"),
            split(r"\.", "merged_with_previous"), split(r"[ \n]", "merged_with_next"),
            split(r"\w+|[^\w\s]+", "removed", invert=True),
            byte_level()])
    yield "behaviors", lambda: train(behaviors(), 350)

    def compatible():
        numbers = pre_tokenizers.Digits(individual_digits=False)
        tokenizer = train(pre_tokenizers.Sequence([numbers, byte_level(True)]), 350)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.NFKC()])
        return add_tokens(tokenizer)
    yield "nfd_nfkc", compatible
    yield "nfkd", lambda: set_normalizer(train(byte_level(use_regex=True), 350), normalizers.NFKD())


def set_normalizer(tokenizer, normalizer):
    tokenizer.normalizer = normalizer
    return tokenizer


def smollm2(path):
    """SmolLM2's published tokenizer.json over the vocabulary of the GGUF file."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([
        AddedToken(t, special=True, normalized=False)
        for t, kind in zip(tokens, types) if kind in TYPES_SPECIAL])
    return tokenizer


def cases(tokenizer):
    size = tokenizer.get_vocab_size()
    rng = random.Random(3)
    encode = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts()]
    special = [tokenizer.encode(text, add_special_tokens=True).ids for text in texts()[:40]]
    batches = [[rng.randrange(size) for _ in range(rng.randrange(1, 12))] for _ in range(60)]
    batches += encode[::6]
    decode = [[ids] + [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
              for ids in batches]
    return {"judge": f"tokenizers {tokenizers.__version__}", "encode": encode,
            "encode_special": special, "decode": decode}


def write(name, document):
    text = json.dumps(document, ensure_ascii=True, separators=(",", ":"))
    (OUT / name).write_text(text + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    demo_model = pathlib.Path.home() / ".cache/pergola/SmolLM2-135M-Instruct.Q4_1.gguf"
    parser.add_argument("--gguf", default=demo_model)
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    write("texts.json", texts())
    for name, make in families():
        tokenizer = make()
        write(f"{name}.tokenizer.json", json.loads(tokenizer.to_str()))
        write(f"{name}.golden.json", cases(tokenizer))
    write("smollm2.golden.json", cases(smollm2(str(arguments.gguf))))
    total = sum(f.stat().st_size for f in OUT.iterdir())
    print(f"{total} bytes in {OUT}")


if __name__ == "__main__":
    main()
