"""Writes the golden token ids: what transformers' CLIPTokenizer makes of 500 varied strings.

    python tests/golden/prompt/make_golden.py

Needs transformers 5.23.0 (tokenizers 0.23). The vocabulary is built from src/prompt/clip_merges.txt exactly as
OpenAI's simple_tokenizer.py builds it, so nothing is downloaded.
"""

import json
import random
from pathlib import Path

import tokenizers
import transformers
from transformers import CLIPTokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def openai():
    lines = (ROOT / "src/prompt/clip_merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines]
    printable = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(m) for m in merges] + [BOS, EOS]
    return {t: i for i, t in enumerate(tokens)}, merges


def small(merges):
    """A vocabulary with holes: no q, no z, no digit past 4, little punctuation, nothing above ASCII but é's first byte."""
    alphabet = list("abcdefghijklmnoprstuvwxy01234,.-'") + ["\u00c3"]
    tokens = alphabet + [c + "</w>" for c in alphabet if c != "y"]
    kept = []
    for a, b in merges:
        if a in tokens and b in tokens and len(kept) < 200:
            kept.append((a, b))
            tokens.append(a + b)
    tokens = tokens[:20] + [EOS] + tokens[20:] + [BOS]
    return {t: i for i, t in enumerate(tokens)}, kept


HAND_MADE = [
    "", " ", "   \t\n ", "a", "A", ",", ", ", "a,b", "a , b", "!", "!!!", "?!?!", "...", "\u2026", "\n", "\r\n", "\x00", "\x00\x01\x02",
    "tab\there", "nul\x00inside", "bell\x07", "esc\x1b[31mred", "del\x7f", "nel\x85x", "fs\x1cx", "us\x1fx", "vt\x0bx", "ff\x0cx",
    "nbsp\u00a0x", "\u1680ogham", "mongolian\u180eseparator", "en\u2002quad\u2003em", "line\u2028sep\u2029para", "narrow\u202fnbsp",
    "ideographic\u3000space", "zero\u200bwidth", "zwnj\u200cx", "zwj\u200dx", "word\u2060joiner", "\ufeffbom first", "soft\u00adhyphen",
    BOS, EOS, BOS + EOS, f"{BOS}a cat{EOS}", f"x{EOS}y", f"a {EOS} b", f" {EOS} ", f"{EOS}{EOS}{EOS}", "<|ENDOFTEXT|>", "<|StartOfText|>",
    "<|endoftext|", "|endoftext|>", "<|endoftext |>", "<start_of_text>", "<end_of_text>", "<|", "|>", "<|>", "<||>", f"!{EOS}", f"'{BOS}'s",
    "it's", "IT'S", "it\u2019s", "don't", "we've", "we're", "i'm", "you'll", "she'd", "rock 'n' roll", "'s", "''s", "!'s", "'S", "'sup", "'tis",
    "'llama", "o'reilly's", "'re've'm", "can't've", "''''", "\u2018quoted\u2019", "\u201cdouble\u201d", "\u00abguillemets\u00bb", "`tick`",
    "1", "12", "123", "1234567890", "3.14159", "1,000,000", "-5", "1e-5", "0x1f", "50%", "\u0661\u0662\u0663", "\u0967\u0968\u0969", "\uff11\uff12\uff13",
    "\u00b2\u00b3\u00b9", "\u00bd \u2153", "\u2167 \u216b", "\u2460\u2461", "\u3007", "\u4e00\u4e8c\u4e09", "x2", "2x", "v1.5", "512x512", "4k", "8K UHD", "f/1.8", "35mm", "1girl",
    "caf\u00e9", "cafe\u0301", "\u00c5ngstr\u00f6m", "A\u030angstro\u0308m", "na\u00efve", "nai\u0308ve", "e\u0301\u0301", "\u0301alone", "a\u0323\u0302", "a\u0302\u0323", "\u1ea5", "q\u0307\u0323", "Z\u0351\u036b\u0343a\u0321lgo",
    "\u1e9b\u0323", "\ufb01ne", "\ufb03", "\u2126 \u03a9", "\u212b", "\u212a", "\u00df", "STRASSE", "Stra\u1e9ee", "\u0130stanbul", "istanbul \u0131", "I\u0307", "\u03a3\u0391\u03a3", "\u03bf\u03b4\u03bf\u03c3 \u039f\u0394\u039f\u03a3", "\u01c5 \u01c4", "\u1f88", "\u00b5 \u03bc",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "\u0439", "\u0438\u0306", "\u0401\u043b\u043a\u0430", "\u4e2d\u6587", "\u732b\u306e\u5199\u771f", "\u30d5\u309a\u30ed", "\u30d7\u30ed", "\uff8c\uff9f", "\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab", "\u9f8d\U00020000", "\uf900", "\u8c48",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", "\u1019\u103c\u1014\u103a\u1019\u102c", "\u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8", "\u1c93\u1c90", "\u13a0\u13b9", "\uab70", "\u10a0", "\u0531\u0580\u0574",
    "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05c1\u05dc\u05d5\u05b9\u05dd", "\u202eright to left\u202c", "\u2067iso\u2069", "abc \u0645\u0631 def", "\ufe8d", "\u06f1\u06f2",
    "\U0001f600", "\U0001f600\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7", "\u2764\ufe0f", "\u2764", "1\ufe0f\u20e3", "cat\U0001f431cat", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001fae8", "\u2600\u26a1",
    "\U0001d49c\U0001d4b7", "\U0001d7d8", "\U00010400", "\U00010428", "\U0001e900", "\U000f0000", "\ue000", "\ufffd", "\uffff", "\U0010ffff", "\u0378",
    "a" * 77, "a" * 500, "ab" * 200, "donaudampfschifffahrtsgesellschaftskapit\u00e4nsm\u00fctze", "pneumonoultramicroscopicsilicovolcanoconiosis",
    "supercalifragilisticexpialidocious" * 3, "\u732b" * 60, "!" * 100, "\U0001f600" * 30, "-" * 33, "_" * 9, "=" * 64, "1" * 40, "a b " * 60, "," * 80,
    "under_score", "kebab-case", "camelCaseWord", "path/to/file.png", "C:\\Users\\x", "https://example.com/?q=a&b=c#d", "user@example.com", "#hashtag", "$100", "a+b=c",
    "(masterpiece:1.2), best quality", "[lowres], ((blurry))", "\\(escaped\\)", "<lora:style:0.8>", "a|b", "a:b:0.5", "{a,b}", "{{a}}", "a; b", "a & b", "a*b", "~", "^_^", ">_<", ":3", "\u2122\u00ae\u00a9",
    "masterpiece, best quality, 1girl, solo, long hair, looking at viewer", "trending on artstation, by greg rutkowski, unreal engine, octane render",
    "a photograph of an astronaut riding a horse", "A Lighthouse At Dusk", "EXTREMELY DETAILED CG", "apple, flat icon, blue background", "\u6c34\u5f69\u753b, \u732b, best quality",
]

MINI = ["apple, flat icon, blue background", "Traffic Light, glossy icon, yellow background", "a, soft icon, dark-red background"]

WORDS = """a an the of in on with and cat dog lighthouse dusk portrait painting photo watercolor oil canvas style city night rain neon
    forest castle dragon girl boy robot astronaut horse mountains river sunset glow light shadow detailed masterpiece best quality
    4k 8k hdr 35mm f/1.8 bokeh cinematic vintage retro cyberpunk steampunk art-deco ukiyo-e art_nouveau baroque cubism
    Van Gogh Rembrandt D\u00fcrer Mir\u00f3 Monet Hokusai \u5317\u658e na\u00efve caf\u00e9 jalape\u00f1o fa\u00e7ade \u00fcber smorg\u00e5sbord ch\u00e2teau
    it's don't we've they're I'm qqq zzz xylophone quizzical jazz 1920s 2024 007 \U0001f3a8 \U0001f600 \u2764\ufe0f \u2605 \u2013 \u2014 \u2026""".split()
JOINS = [" ", " ", " ", ", ", ",", "  ", " \n", "-", "_", ". ", "! ", "\t", ": ", "/", " (", ") ", "", "'", "\u3000"]
RANGES = [(0x20, 0x7E)] * 6 + [(0x00, 0x1F), (0x80, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF),
          (0xE00, 0xFFF), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x23FF), (0x2600, 0x27BF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
          (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFF00, 0xFFEF), (0x10400, 0x1044F), (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF), (0x20000, 0x2A6DF)]


def strings(vocab):
    rng = random.Random(20)
    endings = [t[:-4] for t in vocab if t.endswith("</w>") and t.isascii() and len(t) > 7]
    out = list(dict.fromkeys(HAND_MADE))
    while len(out) < 330:  # words the vocabulary has as one token, glued and apart
        out.append("".join(rng.choice(endings) + rng.choice([" ", " ", ""]) for _ in range(30)))
    while len(out) < 420:
        text = rng.choice(WORDS)
        for _ in range(rng.randint(0, 30)):
            word = rng.choice(WORDS)
            text += rng.choice(JOINS) + rng.choice([word, word, word.upper(), word.title()])
        out.append(text)
    while len(out) < 500:
        out.append("".join(chr(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randint(1, 24))))
    return out


def encode(tokenizer, texts):
    return [{"text": t, "ids": tokenizer(t, add_special_tokens=False).input_ids} for t in texts]


def main():
    vocab, merges = openai()
    texts = strings(vocab)
    small_vocab, small_merges = small(merges)
    golden = {
        "made_by": f"make_golden.py, transformers {transformers.__version__}, tokenizers {tokenizers.__version__}",
        "small_vocab": small_vocab,
        "small_merges": [" ".join(m) for m in small_merges],
        "openai": encode(CLIPTokenizer(vocab=vocab, merges=merges), texts),
        "small": encode(CLIPTokenizer(vocab=small_vocab, merges=small_merges), texts[::4]),
        "mini": encode(CLIPTokenizer.from_pretrained(ROOT / "sample-data/mini/tokenizer"), texts[::4] + MINI),
    }
    lines = [f"  {json.dumps(k)}: " + (
        "[\n" + ",\n".join("    " + json.dumps(row) for row in v) + "\n  ]" if k in ("openai", "small", "mini") else json.dumps(v)
    ) for k, v in golden.items()]
    (HERE / "tokens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(len(texts), "texts,", len({i for row in golden["openai"] for i in row["ids"]}), "different ids")


if __name__ == "__main__":
    main()
