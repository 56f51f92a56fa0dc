#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/: tiny tokenizers of every kind and what Hugging Face tokenizers
makes of texts.

Run with a Python that has `tokenizers` and `gguf`:  scripts/goldens_tokenizer.py [--gguf FILE]
The result is deterministic, but for the tokenizers of newer_families, which are made only where
they are missing. texts.json holds the texts of all. NAME.golden.json holds "encode":
their ids without, and "encode_special": of the first 40 with special tokens added; "decode": [ids,
text, text without special tokens]. Newer files hold the first 40 of "encode" and in "digest" the
SHA-256 of all: ids parted by spaces, lists by line feeds. smollm2.golden.json has no tokenizer file beside it: its
vocabulary is the demo model's.
"""
import argparse
import base64
import hashlib
import json
import pathlib
import random
import struct

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


def train_bpe(normalizer, pre_tokenizer, vocab_size, **extras):
    """A SentencePiece-style BPE: characters, then bytes for what has no character."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    options = {k: v for k, v in extras.items() if k.endswith(("prefix", "suffix"))}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True,
                                     **options))
    tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=pieces,
                                  limit_alphabet=90, show_progress=False, **options)
    tokenizer.train_from_iterator(corpus_lines(), trainer)

    def edit(document):
        document["model"].update({k: v for k, v in extras.items() if k not in options})
        keep = [t for t in document["added_tokens"] if not t["content"].startswith("<0x")]
        document["added_tokens"] = keep
    return edited(tokenizer, edit)


def sentencepiece_decoder(strip):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))


def with_bos(tokenizer, eos=False):
    sides = "<s> $A </s>" if eos else "<s> $A"
    ids = [(t, tokenizer.token_to_id(t)) for t in (("<s>", "</s>") if eos else ("<s>",))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=sides, pair=sides + " $B", special_tokens=ids)
    return tokenizer


def llama2():
    tokenizer = train_bpe(normalizers.Sequence([normalizers.Prepend("▁"),
                                                normalizers.Replace(" ", "▁")]),
                          pre_tokenizers.Metaspace("▁", prepend_scheme="never"), 700)
    tokenizer = edited(tokenizer, lambda d: d.update(pre_tokenizer=None))
    tokenizer.decoder = sentencepiece_decoder(strip=True)
    return with_bos(add_tokens(tokenizer))


def mistral():
    tokenizer = train_bpe(None, pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=True),
                          600)

    def unsplit(document):
        document["pre_tokenizer"]["split"] = False
    tokenizer = edited(tokenizer, unsplit)
    tokenizer.decoder = sentencepiece_decoder(strip=True)
    return with_bos(add_tokens(tokenizer))


def gemma():
    tokenizer = train_bpe(normalizers.Replace(" ", "▁"), split("▁+[^▁]*|[^▁]+"), 800,
                          ignore_merges=False)
    tokenizer = edited(tokenizer, lambda d: d.update(pre_tokenizer={
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
        "invert": False}))
    tokenizer.decoder = sentencepiece_decoder(strip=False)
    tokenizer.add_tokens([AddedToken(s, normalized=False) for s in ("\n\n", "▁▁", "<table>")])
    return with_bos(add_tokens(tokenizer))


def some_bytes():
    """Unknown characters of which some have all their bytes and some have not."""
    tokenizer = train_bpe(None, pre_tokenizers.Whitespace(), 500, fuse_unk=False)

    def drop(document):
        gone = [f"<0x{byte:02X}>" for byte in range(0xe0, 0x100)]
        vocab = document["model"]["vocab"]
        kept = sorted((t for t in vocab if t not in gone), key=vocab.get)
        document["model"]["vocab"] = {t: i for i, t in enumerate(kept)}
        for token in document["added_tokens"]:
            token["id"] = kept.index(token["content"])
    tokenizer = edited(tokenizer, drop)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Replace("a", "<a>"),
                                           decoders.Fuse(), decoders.Replace("an", "AN"),
                                           decoders.Strip(".", 1, 0)])
    return tokenizer


def affixes():
    tokenizer = train_bpe(normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer(), 600,
                          continuing_subword_prefix="##", end_of_word_suffix="</w>",
                          byte_fallback=False)
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return add_tokens(tokenizer)


def suffix_bytes():
    """Byte-level words with an end-of-word suffix, as CLIP has them."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        split(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", "removed",
              invert=True), byte_level()])
    tokenizer.decoder = decoders.Sequence([decoders.BPEDecoder("</w>"), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=500, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(corpus_lines(), trainer)
    return tokenizer


def falcon():
    tokenizer = train(pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"), byte_level(use_regex=True),
        pre_tokenizers.Digits(individual_digits=False), split("[0-9][0-9][0-9]")]), 500)
    return add_tokens(tokenizer)


def train_unigram(normalizer, pre_tokenizer, vocab_size, special=("<unk>", "<s>", "</s>")):
    tokenizer = Tokenizer(models.Unigram())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=list(special),
                                      unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus_lines(), trainer)
    # Training is not bound to an order of equal scores, nor to the last bits of a score.

    def settle(document):
        head, tail = document["model"]["vocab"][:3], document["model"]["vocab"][3:]
        tail = sorted(([t, round(s, 6)] for t, s in tail), key=lambda p: (-p[1], p[0]))
        document["model"]["vocab"] = head + tail
    return edited(tokenizer, settle)


def charsmap(rules):
    """A compiled charsmap: a double array of one state per node, found by trying offsets."""
    trie = {}
    texts = b""
    for source, target in rules.items():
        node = trie
        for byte in source.encode():
            node = node.setdefault(byte, {})
        node[None] = len(texts)
        texts += target.encode() + b"\0"
    units = {0: 0}
    queue = [(trie, 0)]
    while queue:
        node, place = queue.pop(0)
        labels = [0 if label is None else label for label in node]
        offset = 1
        while any(place ^ offset ^ label in units for label in labels):
            offset += 1
        units[place] |= offset << 10 | (1 << 8 if None in node else 0)
        for label, child in node.items():
            at = place ^ offset ^ (label or 0)
            if label is None:
                units[at] = child | 1 << 31
            else:
                units[at] = label
                queue.append((child, at))
    array = [units.get(i, 0) for i in range(max(units) + 1)]
    blob = struct.pack(f"<I{len(array)}I", 4 * len(array), *array) + texts
    return base64.b64encode(blob).decode()


CHARSMAP = {"ﬁ": "fi", "①": "1", "½": "1/2", "\u00a0": " ", "\u3000": " ", "\t": " ", "\n": " ",
            "\r": " ", "！": "!", "Å": "A\u030a", "e\u0301": "é", "a\u0301": "á", "\u00ad": "",
            "👍": "+1", "Ａ": "A", "Ｂ": "B", "ﷺ": "صلى الله عليه وسلم"}


def t5():
    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                             pre_tokenizers.Metaspace("▁")])
    tokenizer = train_unigram(None, pre_tokenizer, 500)
    tokenizer = edited(tokenizer, lambda d: d.update(normalizer={
        "type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": charsmap(CHARSMAP)},
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]}))
    tokenizer.decoder = decoders.Metaspace("▁")
    return with_bos(add_tokens(tokenizer), eos=True)


def unigram():
    tokenizer = train_unigram(normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]),
                              pre_tokenizers.Metaspace("▁", prepend_scheme="first"), 400)

    def fall_back(document):
        document["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
        document["model"]["byte_fallback"] = True
    tokenizer = edited(tokenizer, fall_back)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(),
                                           decoders.Metaspace("▁", prepend_scheme="never")])
    tokenizer.add_tokens([AddedToken("Caf\u00e9", normalized=True)])
    return tokenizer


def unigram_bytes():
    """Unigram over the spelling of bytes; no decoder at all."""
    tokenizer = train_unigram(None, byte_level(use_regex=True), 500)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return tokenizer


def accents():
    tokenizer = train_bpe(normalizers.Sequence([
        normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(),
        normalizers.Strip(), normalizers.Replace(Regex("[0-9]{2,}"), "#")]), pre_tokenizers.Sequence([
            pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_previous"),
            pre_tokenizers.CharDelimiterSplit("-"), pre_tokenizers.Metaspace(
                "_", prepend_scheme="first")]), 500)
    tokenizer.decoder = decoders.Metaspace("_", prepend_scheme="first")
    return add_tokens(tokenizer)


def newer_families():
    return [("llama2", llama2), ("mistral", mistral), ("gemma", gemma), ("some_bytes", some_bytes),
            ("affixes", affixes), ("suffix_bytes", suffix_bytes), ("falcon", falcon),
            ("accents", accents), ("t5", t5), ("unigram", unigram),
            ("unigram_bytes", unigram_bytes)]


def digested(golden):
    lists = "\n".join(" ".join(map(str, ids)) for ids in golden["encode"])
    return dict(golden, encode=golden["encode"][:40],
                digest=hashlib.sha256(lists.encode()).hexdigest())


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
    for name, make in newer_families():
        # Training these is not deterministic: a tokenizer that is there stays.
        path = OUT / f"{name}.tokenizer.json"
        if not path.exists():
            write(path.name, json.loads(make().to_str()))
        tokenizer = Tokenizer.from_file(str(path))
        write(f"{name}.golden.json", digested(cases(tokenizer)))
    write("smollm2.golden.json", cases(smollm2(str(arguments.gguf))))
    total = sum(f.stat().st_size for f in OUT.iterdir())
    print(f"{total} bytes in {OUT}")


if __name__ == "__main__":
    main()
