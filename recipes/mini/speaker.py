"""Trains the mini speaker extractor, an ECAPA-TDNN in SpeechBrain's format; see README.md beside this file.

python recipes/mini/speaker.py --export localgp/contexts/mini/speaker
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extractor import half, parse_arguments

from localgp.corpora.mini import LANGUAGES, speakers, synthesize_split

DEFAULTS = {"utterances": 30, "test_utterances": 14, "steps": 500, "batch_size": 48, "lr": 3e-3}
CROP = 160  # feature frames of a training example: 1.6 s
SHAPE = {
    "input_size": 80,
    "channels": [96, 96, 96, 96, 288],
    "kernel_sizes": [5, 3, 3, 3, 1],
    "dilations": [1, 2, 3, 4, 1],
    "attention_channels": 64,
    "se_channels": 64,
    "lin_neurons": 64,
}
HYPERPARAMS = """\
# ECAPA-TDNN speaker embeddings, trained on generated speech by recipes/mini/speaker.py. In SpeechBrain:
#   EncoderClassifier.from_hparams(source=DIR, overrides={{"pretrained_path": DIR}})
pretrained_path: localgp/contexts/mini/speaker
n_mels: {input_size}
out_n_neurons: {speakers}

compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>

mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False

embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: {channels}
    kernel_sizes: {kernel_sizes}
    dilations: {dilations}
    attention_channels: {attention_channels}
    se_channels: {se_channels}
    lin_neurons: {lin_neurons}

classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: {lin_neurons}
    out_neurons: !ref <out_n_neurons>

mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    std_norm: False

modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
    classifier: !ref <classifier>

label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        mean_var_norm_emb: !ref <mean_var_norm_emb>
        classifier: !ref <classifier>
        label_encoder: !ref <label_encoder>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
        mean_var_norm_emb: !ref <pretrained_path>/mean_var_norm_emb.ckpt
        classifier: !ref <pretrained_path>/classifier.ckpt
        label_encoder: !ref <pretrained_path>/label_encoder.txt
"""


def make_features() -> Any:
    """SpeechBrain's features of ``hyperparams.yaml``, samples (N,) to (F, M), before normalisation."""
    from speechbrain.lobes.features import Fbank

    fbank = Fbank(n_mels=SHAPE["input_size"]).eval()

    @torch.inference_mode()
    def features(samples: np.ndarray) -> torch.Tensor:
        return fbank(torch.from_numpy(samples)[None])[0].clone()

    return features


def draw(seed: int, groups: Sequence[str], per_speaker: int, workers: int) -> list[tuple[str, torch.Tensor]]:
    """Speaker and features of so many utterances of each speaker of the groups, in noise."""
    features = make_features()
    drawn = []
    for language in LANGUAGES:
        names = [name for group in groups for name in speakers(language, group)]
        count = per_speaker * len(names)
        for utterance in synthesize_split(seed, language, names, count, workers=workers):
            drawn.append((utterance.speaker, features(utterance.samples)))
    return drawn


def crop(feats_FM: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A random 1.6 s, without its mean."""
    if len(feats_FM) < CROP:
        feats_FM = feats_FM.repeat(-(-CROP // len(feats_FM)), 1)
    begin = int(rng.integers(len(feats_FM) - CROP + 1))
    piece = feats_FM[begin : begin + CROP]
    return piece - piece.mean(0)


def train(args: argparse.Namespace, network: Any, classifier: Any, data: list, labels: list[str]) -> None:
    """Additive angular margin softmax over the training speakers, as the published model."""
    from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper

    loss_of = LogSoftmaxWrapper(AdditiveAngularMargin(margin=0.2, scale=30))
    parameters = [*network.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.15)
    rng = np.random.default_rng(args.seed)
    began = time.perf_counter()
    for step in range(1, args.steps + 1):
        chosen = rng.integers(len(data), size=args.batch_size)
        feats_BFM = torch.stack([crop(data[i][1], rng) for i in chosen])
        target_B1 = torch.tensor([[labels.index(data[i][0])] for i in chosen])
        scores_B1K = classifier(network(feats_BFM))
        loss = loss_of(scores_B1K, target_B1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            right = float((scores_B1K[:, 0].argmax(-1) == target_B1[:, 0]).float().mean())
            seconds = time.perf_counter() - began
            print(f"step {step:>5}  loss {float(loss):.3f}  right {right:.0%}  {seconds:.0f} s", flush=True)


@torch.inference_mode()
def embed(network: Any, data: list) -> torch.Tensor:
    """(U, C), of whole utterances."""
    return torch.stack([network((feats - feats.mean(0))[None])[0, 0] for _, feats in data])


def equal_error_rate(positive: np.ndarray, negative: np.ndarray) -> float:
    """Where as many pairs of one speaker are rejected as pairs of two are accepted.

    Example:
        >>> equal_error_rate(np.array([0.9, 0.8, 0.2]), np.array([0.1, 0.3, 0.15]))
        0.3333333333333333
    """
    thresholds = np.sort(np.concatenate([positive, negative]))
    rejected = np.searchsorted(np.sort(positive), thresholds) / len(positive)
    accepted = 1 - np.searchsorted(np.sort(negative), thresholds) / len(negative)
    at = int(np.argmin(np.abs(rejected - accepted)))
    return float((rejected[at] + accepted[at]) / 2)


def score(network: Any, data: list) -> dict[str, Any]:
    """EER over all pairs of utterances of unseen speakers, and over those of one language, which are harder."""
    unit_UC = torch.nn.functional.normalize(embed(network, data), dim=-1)
    cosine_UU = (unit_UC @ unit_UC.T).numpy()
    names = np.array([name for name, _ in data])
    languages = np.array([name.split("-")[0] for name in names])
    pairs = np.triu(np.ones_like(cosine_UU, dtype=bool), 1)
    same = names[:, None] == names
    within = languages[:, None] == languages
    return {
        "eer_unseen_speakers": round(equal_error_rate(cosine_UU[pairs & same], cosine_UU[pairs & ~same]), 4),
        "eer_unseen_speakers_same_language": round(
            equal_error_rate(cosine_UU[pairs & same], cosine_UU[pairs & ~same & within]), 4
        ),
        "unseen_speakers": len(set(names)),
        "utterances": len(names),
        "pairs": int(pairs.sum()),
    }


def export(
    directory: Path,
    network: Any,
    classifier: Any,
    labels: list[str],
    embeddings_UC: torch.Tensor,
    scores: dict,
) -> None:
    """Writes SpeechBrain's files, weights in fp16; each appears whole, ``hyperparams.yaml`` last."""
    from speechbrain.dataio.encoder import CategoricalEncoder
    from speechbrain.processing.features import InputNormalization

    norm = InputNormalization(norm_type="global", std_norm=False).train()
    norm(embeddings_UC[None])
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(labels, sequence_input=False)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        staging = Path(temporary)
        torch.save(half(network.state_dict()), staging / "embedding_model.ckpt")
        torch.save(half(classifier.state_dict()), staging / "classifier.ckpt")
        norm._save(staging / "mean_var_norm_emb.ckpt")
        encoder.save(staging / "label_encoder.txt")
        (staging / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        text = HYPERPARAMS.format(**SHAPE, speakers=len(labels))
        (staging / "hyperparams.yaml").write_text(text, encoding="utf-8")
        for file in sorted(staging.iterdir(), key=lambda path: path.name == "hyperparams.yaml"):
            os.replace(file, directory / file.name)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier

    args = parse_arguments(__doc__, arguments, per="speaker", **DEFAULTS)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    began = time.perf_counter()
    data = draw(args.seed, ["pretrain", "train"], args.utterances, args.threads)
    unseen = draw(args.seed + 1, ["dev", "test"], args.test_utterances, args.threads)
    labels = sorted({name for name, _ in data})
    print(
        f"{len(data)} utterances of {len(labels)} speakers, {time.perf_counter() - began:.0f} s", flush=True
    )
    network = ECAPA_TDNN(**SHAPE)
    classifier = Classifier(SHAPE["lin_neurons"], out_neurons=len(labels))
    if args.steps:
        train(args, network, classifier, data, labels)
    network.load_state_dict(half(network.eval().state_dict()))  # what is scored is what is written
    scores = {
        "model": "ECAPA-TDNN",
        "parameters": sum(p.numel() for p in network.parameters()),
        "training_speakers": len(labels),
        "training_utterances": len(data),
        "steps": args.steps,
        **score(network, unseen),
        "seconds": round(time.perf_counter() - began),
    }
    export(args.export, network, classifier, labels, embed(network, data[::8]), scores)
    print(json.dumps(scores))
    return scores


if __name__ == "__main__":
    main()
