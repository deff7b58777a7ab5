"""Trains the mini event extractor, a BEATs in the published format; see README.md beside this file.

python recipes/mini/event.py --export localgp/contexts/mini/event
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from extractor import half, parse_arguments

from localgp.contexts.event import BANDS, LAYERS, MINI_FILE, build
from localgp.corpora.mini import LANGUAGES, speakers, synthesize_split
from localgp.corpora.mini.noise import KINDS

DEFAULTS = {"utterances": 320, "test_utterances": 60, "steps": 700, "batch_size": 16, "lr": 1.5e-3}
CROP = 24  # steps of 160 ms of a training example
FRAMES = 16  # feature frames of a step
CLASSES = ("speech", *("silence" if kind == "clean" else kind for kind in KINDS))
CFG = {
    "input_patch_size": 16,
    "embed_dim": 64,
    "conv_bias": False,
    "encoder_layers": LAYERS,
    "encoder_embed_dim": 128,
    "encoder_ffn_embed_dim": 256,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "layer_wise_gradient_decay_ratio": 1.0,
    "layer_norm_first": False,
    "deep_norm": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "dropout_input": 0.0,
    "conv_pos": 64,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
    "finetuned_model": False,
}


def labels_of(utterance: Any, steps: int) -> torch.Tensor:
    """Class of each step: speech where it fills half of the step, else the utterance's noise, or silence."""
    spoken = np.zeros(steps * 160, dtype=bool)  # by milliseconds
    for start, end in utterance.speech:
        spoken[round(1000 * start) : round(1000 * end)] = True
    background = 1 + KINDS.index(utterance.noise)
    return torch.from_numpy(np.where(spoken.reshape(steps, 160).mean(1) >= 0.5, 0, background))


def draw(beats: Any, seed: int, groups: Sequence[str], count: int, workers: int) -> list[tuple]:
    """Features (F, 128) in whole steps and labels (S,) of ``count`` utterances per language."""
    drawn = []
    for language in LANGUAGES:
        names = [name for group in groups for name in speakers(language, group)]
        for utterance in synthesize_split(seed, language, names, count, workers=workers):
            with torch.inference_mode():
                fbank = beats.preprocess(torch.from_numpy(utterance.samples)[None])[0].clone()
            steps = len(fbank) // FRAMES
            drawn.append((fbank[: steps * FRAMES], labels_of(utterance, steps)))
    return drawn


class FromFeatures:
    """A BEATs that takes features instead of samples: they are computed once, before training."""

    def __init__(self, beats: Any) -> None:
        self.beats = beats

    def __call__(self, fbank_BFM: torch.Tensor) -> torch.Tensor:
        """(B, S, C): the second layer's output, averaged over the bands of a step."""
        beats = self.beats
        patches = beats.patch_embedding(fbank_BFM.unsqueeze(1)).flatten(2).transpose(1, 2)
        features = beats.post_extract_proj(beats.layer_norm(patches))
        _, results = beats.encoder(features, layer=LAYERS)
        return results[LAYERS][0].transpose(0, 1).unflatten(1, (-1, BANDS)).mean(2)


def train(args: argparse.Namespace, beats: Any, head: Any, data: list[tuple]) -> None:
    network = FromFeatures(beats.train())
    parameters = [*beats.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.15)
    rng = np.random.default_rng(args.seed)
    weight = torch.tensor([0.3, *[1.0] * len(KINDS)])  # two thirds of the steps are speech
    long = [index for index, (_, labels) in enumerate(data) if len(labels) >= CROP]
    began = time.perf_counter()
    for step in range(1, args.steps + 1):
        feats, target = [], []
        for index in rng.choice(long, size=args.batch_size):
            fbank, labels = data[index]
            begin = int(rng.integers(len(labels) - CROP + 1))
            feats.append(fbank[begin * FRAMES : (begin + CROP) * FRAMES])
            target.append(labels[begin : begin + CROP])
        logits_BSK = head(network(torch.stack(feats)))
        target_BS = torch.stack(target)
        loss = F.cross_entropy(logits_BSK.flatten(0, 1), target_BS.flatten(), weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            right = float((logits_BSK.argmax(-1) == target_BS).float().mean())
            seconds = time.perf_counter() - began
            print(f"step {step:>5}  loss {float(loss):.3f}  right {right:.0%}  {seconds:.0f} s", flush=True)
    beats.eval()


@torch.inference_mode()
def score(beats: Any, head: Any, data: list[tuple]) -> dict[str, Any]:
    """Accuracy by step on unseen speakers, and recall of each class."""
    network = FromFeatures(beats)
    found = torch.cat([head(network(fbank[None]))[0].argmax(-1) for fbank, _ in data])
    truth = torch.cat([labels for _, labels in data])
    pause = truth > 0
    return {
        "accuracy": round(float((found == truth).float().mean()), 4),
        "speech_or_not": round(float(((found == 0) == (truth == 0)).float().mean()), 4),
        "kind_of_background_in_pauses": round(float((found == truth)[pause].float().mean()), 4),
        "recall": {
            name: round(float((found[truth == i] == i).float().mean()), 4)
            for i, name in enumerate(CLASSES)
            if (truth == i).any()
        },
        "share_of_speech": round(float((truth == 0).float().mean()), 4),
        "steps_scored": len(truth),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_arguments(__doc__, arguments, per="language", **DEFAULTS)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    began = time.perf_counter()
    beats = build(CFG)
    beats.reload_pretrained_parameters()  # BEATs' own initialisation
    head = torch.nn.Linear(CFG["encoder_embed_dim"], len(CLASSES))  # thrown away afterwards
    data = draw(beats, args.seed, ["pretrain", "train"], args.utterances, args.threads)
    unseen = draw(beats, args.seed + 1, ["dev", "test"], args.test_utterances, args.threads)
    print(f"{len(data)} utterances, {time.perf_counter() - began:.0f} s", flush=True)
    if args.steps:
        train(args, beats, head, data)
    beats.load_state_dict(half(beats.state_dict()))  # what is scored is what is written
    scores = {
        "model": "BEATs",
        "parameters": sum(p.numel() for p in beats.parameters()),
        "training_utterances": len(data),
        "steps": args.steps,
        **score(beats, head, unseen),
        "seconds": round(time.perf_counter() - began),
    }
    args.export.mkdir(parents=True, exist_ok=True)
    temporary = args.export / f".{MINI_FILE}.tmp"
    torch.save({"cfg": CFG, "model": half(beats.state_dict())}, temporary)
    os.replace(temporary, args.export / MINI_FILE)
    temporary = args.export / ".scores.json.tmp"
    temporary.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, args.export / "scores.json")
    print(json.dumps(scores))
    return scores


if __name__ == "__main__":
    main()
