"""Pretrains the mini backbone on generated speech; see README.md beside this file.

python recipes/mini/pretrain.py --work work/mini --export localgp/backbones/owsm/mini

Killed at any moment, the same command goes on from the last saved state.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from batches import Batches
from filelock import FileLock, Timeout
from guides import Guides
from network import Pretraining, make_fast_on_cpu
from scoring import score
from speech import SpeechSet, synthesize, write_statistics

from localgp.backbones.owsm.build import build_espnet_model
from localgp.backbones.owsm.files import write_espnet_directory
from localgp.backbones.owsm.model import OwsmBackbone, assemble, load_backbone
from localgp.backbones.owsm.shapes import DIMENSIONS, train_config
from localgp.backbones.owsm.tokens import bpe_pieces, full_token_list, special_symbols, train_bpe
from localgp.corpora.mini.grammar import draw_sentence
from localgp.corpora.text import normalize_text
from localgp.precision import cpu_multiplies_bf16

# What a text may hold beyond the grammar's own letters, so that no European sentence is unspellable.
ALPHABET = "abcdefghijklmnopqrstuvwxyzàâäáçèéêëìíîïñòóôöùúûüÿßœæ0123456789.,;:?!'\"()-–«»%€/&"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="features, state and log are kept here")
    parser.add_argument("--export", type=Path, required=True, help="where the finished model is written")
    parser.add_argument("--preview", type=Path, help="also write the model here whenever the state is saved")
    parser.add_argument(
        "--start-from", type=Path, help="directory of a model to go on from, with its vocabulary"
    )
    parser.add_argument("--seed", type=int, default=1999, help="of speech, order and initialisation")
    parser.add_argument("--utterances", type=int, default=5400, help="per language, for training")
    parser.add_argument(
        "--lexicon", choices=["core", "full"], default="core", help="of the sentences; full has every pattern"
    )
    parser.add_argument("--steps", type=int, default=2950, help="of encoder and decoder")
    parser.add_argument("--encoder-steps", type=int, default=800, help="first of them, without the decoder")
    parser.add_argument(
        "--full-share", type=float, default=0.15, help="last of them, padded to the full length"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak, after 300 steps; then linear to 0")
    parser.add_argument("--pieces", type=int, default=260, help="text pieces of the BPE model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-seconds", type=float, default=300)
    parser.add_argument("--random", action="store_true", help="write the untrained model and stop")
    return parser.parse_args()


def make_backbone(args: argparse.Namespace, speech: SpeechSet) -> OwsmBackbone:
    """BPE model, statistics and a randomly initialised model; or the model to start from."""
    if args.start_from:
        return load_backbone({"name": "mini", "path": str(args.start_from), "weights": "pretrained"})
    bpe, stats = args.work / "bpe.model", args.work / "feats_stats.npz"
    dimensions = DIMENSIONS["mini"]
    if not bpe.exists():
        symbols = special_symbols(["deu", "fra", "ita"], dimensions.padded_seconds)
        drawn = [
            draw_sentence(f"bpe/{args.seed}/{i}", lexicon)
            for lexicon in ("core", "full")
            for i in range(4000)
        ]
        texts = [normalize_text(text) for sentence in drawn for text in sentence.values()]
        train_bpe([*texts, " ".join(ALPHABET)], bpe, symbols, args.pieces)
    if not stats.exists():
        write_statistics(speech, stats)
    config = train_config(dimensions, full_token_list(bpe_pieces(bpe)), str(bpe), str(stats))
    torch.manual_seed(args.seed)
    return assemble(build_espnet_model(config), config, "mini", "recipes/mini/pretrain.py")


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def learning_rate(step: int, args: argparse.Namespace, warmup: int = 300) -> float:
    if step < warmup:
        return args.lr * (step + 1) / warmup
    return args.lr * (args.steps - step) / (args.steps - warmup)


def guidance(step: int, args: argparse.Namespace) -> float:
    """Weight of the guide loss: whole for the first half of the decoder's steps, none in the last fifth."""
    done = (step - args.encoder_steps) / (args.steps - args.encoder_steps)
    return min(1.0, max(0.0, (0.8 - done) / 0.3))


def save_state(
    path: Path, network: Pretraining, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def train(
    args: argparse.Namespace, backbone: OwsmBackbone, speech: SpeechSet, dev: SpeechSet, batches: Batches
) -> float:
    """Trains encoder and decoder in place; returns the seconds it took, those before an interruption included."""
    tokens = backbone.tokenizer.token_list
    guides = Guides(
        [item["texts"] for item in speech.items],
        [{code: [tokens[i] for i in ids] for code, ids in texts.items()} for texts in batches.tokens],
        [item["language"] for item in speech.items],
    )
    network = Pretraining(backbone.net, len(speech.symbols), batches, guides).train()
    make_fast_on_cpu(backbone.net)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    dtype = torch.bfloat16 if cpu_multiplies_bf16() else torch.float32
    path, begin, before = args.work / "state.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        begin, before = state["step"], state["seconds"]
        print(f"resumed at step {begin}", flush=True)
    full_from = round(args.steps * (1 - args.full_share))
    began = saved = marked = time.perf_counter()
    counted = begin
    for step in range(begin, args.steps):
        batch = batches.batch(step, full=step >= full_from, decoder=step >= args.encoder_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        loss, terms = network(batch, dtype, guidance(step, args))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise SystemExit(f"step {step}: gradient is not finite, terms {terms}; lower --lr")
        optimizer.step()
        now = time.perf_counter()
        if (step + 1) % 50 == 0:
            line = {
                "step": step + 1,
                **terms,
                "grad_norm": float(norm),
                "steps_per_second": (step + 1 - counted) / (now - marked),
            }
            print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
            marked, counted = now, step + 1
        if now - saved > args.save_seconds or step + 1 == args.steps:
            save_state(path, network, optimizer, step + 1, before + now - began)
            if step >= args.encoder_steps:
                print(json.dumps({"step": step + 1, **score(backbone, dev, per_language=20)}), flush=True)
                if args.preview:
                    write_espnet_directory(backbone.net, backbone.train_config, args.preview, half=True)
            saved = marked = time.perf_counter()
            counted = step + 1
    return before + time.perf_counter() - began


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(args.work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SystemExit(
            f"another pretraining runs in {args.work}; wait for it, or choose another --work"
        ) from None
    sets = {}
    for name, group, seed, count, lexicon in (
        ("dev_core", "dev", args.seed + 1, 100, "core"),
        ("dev_full", "dev", args.seed + 2, 100, "full"),
        ("train", "pretrain", args.seed, args.utterances, args.lexicon),
    ):
        sets[name] = synthesize(
            args.work / name,
            seed=seed,
            group=group,
            per_language=count,
            lexicon=lexicon,
            workers=args.threads,
        )
        print(f"{name}: {len(sets[name])} utterances, {sets[name].starts[-1] / 360000:.1f} h", flush=True)
    backbone = make_backbone(args, sets["train"])
    print(f"{sum(p.numel() for p in backbone.net.parameters()) / 1e6:.2f} M parameters", flush=True)
    if args.random:
        write_espnet_directory(backbone.net, backbone.train_config, args.export, half=True)
        return
    dimensions = DIMENSIONS["mini"]
    batches = Batches(
        sets["train"],
        backbone.tokenizer,
        batch_size=args.batch_size,
        full_seconds=dimensions.padded_seconds,
        init_silence=dimensions.init_silence,
        seed=args.seed,
    )
    seconds = train(args, backbone, sets["train"], sets["dev_core"], batches)
    write_espnet_directory(backbone.net, backbone.train_config, args.export, half=True)
    scores: dict[str, Any] = {
        name: score(backbone, sets[name], per_language=100) for name in ("dev_core", "dev_full")
    }
    scores |= {
        "training": {
            "seed": args.seed,
            "utterances": len(sets["train"]),
            "lexicon": args.lexicon,
            "hours": round(sets["train"].starts[-1] / 360000, 1),
            "steps": args.steps,
            "start_from": str(args.start_from) if args.start_from else None,
            "batch_size": args.batch_size,
            "minutes": round(seconds / 60, 1),
            "threads": args.threads,
            "bf16": cpu_multiplies_bf16(),
            "machine": f"{cpu_name()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
        }
    }
    partial = args.export / "scores.json.partial"
    partial.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, args.export / "scores.json")
    print(json.dumps(scores), flush=True)


if __name__ == "__main__":
    main()
