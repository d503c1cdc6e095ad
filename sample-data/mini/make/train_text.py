"""Make the tokenizer (a small BPE in CLIP's format) and train the text encoder.

The encoder learns to tell subject, style and background of a caption, in whatever
order and among whatever other words they stand, at its end token and at the padding
after it. It is then frozen, so that the UNet can train on stored embeddings.
"""
import argparse
import json
import math
import os
import random
import re
import time

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from common import COLOURS, STYLES, SUBJECTS

WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
LENGTH, PREFIX = 77, 28  # positions from PREFIX on repeat the one before it


def make_tokenizer(data, words, folder, merges=2400):
    """Write vocab.json and merges.txt: all bytes, all bytes ending a word, merges, two special tokens."""
    names = [str(n) for n in np.load(data)["names"]]
    captions = [f"{n}, {s} icon, {c} background" for n in SUBJECTS for s in STYLES for c in COLOURS]
    texts = [" ".join(WORD.findall(t.lower())) for t in names + captions + words.split() * 4]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False,
                                  initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"))
    tokenizer.train_from_iterator((t for t in texts if t.isascii()), trainer)
    pairs = json.loads(tokenizer.to_str())["model"]["merges"][:merges]
    pairs = [tuple(p) if isinstance(p, list) else tuple(p.split(" ")) for p in pairs]
    alphabet = [chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))]
    alphabet += [chr(256 + n) for n in range(256 - len(alphabet))]
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(p) for p in pairs]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/vocab.json", "w", encoding="utf-8") as file:
        json.dump({t: i for i, t in enumerate(tokens)}, file, ensure_ascii=False, separators=(",", ":"))
    with open(f"{folder}/merges.txt", "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs))


def load_tokenizer(folder):
    """CLIP's tokenizer over the files of make_tokenizer."""
    return CLIPTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=LENGTH)


def caption(subject, style=None, colour=None, form=0):
    """One caption: the usual form (0), or a sentence (1)."""
    if form == 0:
        return ", ".join([subject] + ([f"{style} icon"] if style else []) + ([f"{colour} background"] if colour else []))
    return f"a {style + ' icon' if style else 'picture'} of a {subject}" + (f" on a {colour} background" if colour else "")


def sample(rng, words):
    """A random caption and its labels: subject, style and background, the last class of each for none."""
    names = list(SUBJECTS)
    if rng.random() < 0.08:
        return " ".join(rng.sample(words, rng.randint(0, 4))), (len(names), len(STYLES), len(COLOURS))
    subject = rng.randrange(len(names))
    style = rng.randrange(len(STYLES)) if rng.random() < 0.7 else None
    colour = rng.randrange(len(COLOURS)) if rng.random() < 0.7 else None
    text = caption(names[subject], None if style is None else STYLES[style],
                   None if colour is None else COLOURS[colour], rng.randrange(2))
    if rng.random() < 0.3:
        extra = " ".join(rng.sample(words, rng.randint(1, 3)))
        text = f"{extra} {text}" if rng.random() < 0.5 else f"{text}, {extra}"
    return text, (subject, len(STYLES) if style is None else style, len(COLOURS) if colour is None else colour)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data.npz")
    parser.add_argument("--out", default="run")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "words.txt"), encoding="utf-8") as file:
        text = file.read()
    # A tokenizer that is there is kept: the trainer breaks ties between merges differently from run to run.
    if not os.path.exists(f"{args.out}/tokenizer/vocab.json"):
        make_tokenizer(args.data, text, f"{args.out}/tokenizer")
    tokenizer = load_tokenizer(f"{args.out}/tokenizer")
    known = {w for name in (*SUBJECTS, *STYLES, *COLOURS) for w in name.split()}
    words = [w for w in text.split() if w not in known]
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    model = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=LENGTH, hidden_act="quick_gelu", projection_dim=128, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)).to(args.device)
    heads = torch.nn.ModuleList(torch.nn.Linear(128, n + 1) for n in (len(SUBJECTS), len(STYLES), len(COLOURS)))
    heads = heads.to(args.device)
    params = [*model.parameters(), *heads.parameters()]
    opt = torch.optim.AdamW(params, 2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    begun, seen = time.time(), []
    for step in range(args.steps):
        opt.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        texts, labels = zip(*(sample(rng, words) for _ in range(32)))
        ids = tokenizer(list(texts), padding="max_length", max_length=PREFIX, truncation=True, return_tensors="pt").input_ids
        hidden = model(ids.to(args.device)).last_hidden_state
        ends = (ids == tokenizer.eos_token_id).int().argmax(1)
        later = torch.tensor([rng.randint(int(end), PREFIX - 1) for end in ends])
        rows = torch.arange(len(texts))
        loss = 0.0
        for at in (ends, later):
            for head, label in zip(heads, torch.tensor(labels, device=args.device).T):
                loss = loss + torch.nn.functional.cross_entropy(head(hidden[rows, at]), label)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        seen.append(loss.item() / 6)
        if (step + 1) % 50 == 0:
            print(f"{step + 1} {time.time() - begun:.0f}s loss {np.mean(seen):.4f}", flush=True)
            seen = []
    positions = next(p for name, p in model.named_parameters() if "position_embedding" in name)
    positions.data[PREFIX:] = positions.data[PREFIX - 1]
    model.save_pretrained(f"{args.out}/text_encoder")


if __name__ == "__main__":
    main()
