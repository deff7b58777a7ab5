"""A model family of two plain Transformer layers a side, as small as the seam allows."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import nn

from localgp.backbones.base import Backbone, Branch, DecoderInput, Front, Loss, Packed, Shape
from localgp.backbones.blocks import PackedNorm, PackedTransformerLayer
from localgp.backbones.longform import LongForm
from localgp.backbones.rules import TimestampRules
from localgp.errors import ConfigError
from localgp.kernels.ragged import Ragged
from localgp.timeline import Convolution, Timeline

KEY, NAMES, PARTS, WHOLE, HUB, CTC, RANKING = "toy", ("toy",), ("attention", "ffn"), (), (), False, "espnet"
SIZE, HEADS, MELS, WINDOW = 16, 2, 10, 2.0


class Tokens:
    languages, language_ids = ("de", "fr"), (2, 3)
    token_list = (
        "<start>",
        "<end>",
        "<de>",
        "<fr>",
        "<write>",
        "<translate>",
        *"abcdefghijklmnopqrstuvwxyz ",
    )
    start, eos, blank, na, first_time, last_time = (0,), 1, -1, -1, 0, -1
    long_form, tasks, translates_into = LongForm(), (), None

    def encode(self, text):
        return [self.token_list.index(c) for c in text if c in self.token_list]

    def decode(self, ids, skip_special=True):
        return "".join(self.token_list[i] for i in ids if i > 5 or not skip_special)

    def code(self, language):
        if language not in self.languages:
            raise ConfigError(f"unknown language {language!r}")
        return language

    def prompt(self, language, target, *, timestamps=False):
        return [2 + self.languages.index(self.code(language)), 4 + (self.code(target) != language)]

    def previous(self, text, longest):
        return []

    def rules(self, primers):
        return TimestampRules(0, self.eos, -1, self.first_time, self.last_time).forbid_times


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value, self.out = (nn.Linear(SIZE, SIZE) for _ in range(3))
        self.key = nn.Linear(SIZE, SIZE, bias=False)

    def forward(self, x, source, mask):
        source = x if source is None else source
        q, k, v = (
            linear(part).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear, part in ((self.query, x), (self.key, source), (self.value, source))
        )
        scores = (q @ k.transpose(2, 3) / (SIZE / HEADS) ** 0.5).masked_fill(~mask.unsqueeze(1), -1e9)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, attentions):
        super().__init__()
        self.attentions = nn.ModuleList(Attention() for _ in range(attentions))
        self.norms = nn.ModuleList(nn.LayerNorm(SIZE) for _ in range(attentions + 1))
        self.ffn = nn.Sequential(nn.Linear(SIZE, 32), nn.ReLU(), nn.Linear(32, SIZE))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(MELS, SIZE, 3, stride=2)
        self.encoder, self.decoder = (nn.ModuleList(Layer(n) for _ in range(2)) for n in (1, 2))
        self.norm, self.decoder_norm = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.embedding, self.positions = nn.Embedding(33, SIZE), nn.Embedding(64, SIZE)
        self.output = nn.Linear(SIZE, 33)


class Toy(Backbone):
    key = KEY
    encoder_norm = property(lambda self: self.net.norm)
    decoder_norm = property(lambda self: self.net.decoder_norm)
    output_layer = property(lambda self: self.net.output)
    stem = property(lambda self: (self.net.stem,))

    def __init__(self, net):
        self.net, self.name, self.source = net, "toy", "a test"
        self.shape, self.tokenizer = Shape(SIZE, 2, 2, 33, MELS, longest=64), Tokens()
        self.timeline = Timeline(160, (Convolution(3, 2),), extra=0)
        self.sample_rate, self.padded_seconds = 16_000, WINDOW

    def features(self, speech_BN, lengths_B):
        frames = speech_BN[:, : speech_BN.shape[1] // 160 * 160].unflatten(1, (-1, MELS, 16))
        return frames.square().mean(-1).add(1e-3).log(), lengths_B // 160

    def front(self, feats_BSF, lengths_B):
        front_BTD = self.net.stem(feats_BSF.transpose(1, 2)).transpose(1, 2).relu()
        frames_T, lengths = torch.arange(front_BTD.shape[1]), (lengths_B - 1) // 2
        return Front(2 * front_BTD, front_BTD, (frames_T < lengths.unsqueeze(1)).unsqueeze(1))

    def encoder_layer(self, index, x, mask, run):
        layer = self.net.encoder[index]
        norm, before = layer.norms
        x = x + run.attention("attention", lambda x, m: layer.attentions[0](norm(x), None, m), x, mask)
        return x + run.frames("ffn", lambda x: layer.ffn(before(x)), x)

    def decoder_layer(self, index, x, mask, memory, source, run):
        layer = self.net.decoder[index]
        (own, other), norms = layer.attentions, layer.norms
        x = x + run.attention("self_attention", lambda x, m: own(norms[0](x), None, m), x, mask)
        x = x + run.frames("source_attention", lambda x: other(norms[1](x), memory, source), x)
        return x + run.frames("ffn", lambda x: layer.ffn(norms[2](x)), x)

    def branches(self, side, index):
        layer = (self.net.encoder if side == "encoder" else self.net.decoder)[index]
        names = ["attention"] if side == "encoder" else ["self_attention", "source_attention"]
        found = {}
        for name, kind, a, norm in zip(
            names, ("attention", "source"), layer.attentions, layer.norms, strict=False
        ):
            found[name] = Branch(kind, (a.query, a.key, a.value, a.out), norm=norm, module=a, heads=HEADS)
        first, activation, second = layer.ffn
        more = {"norm": layer.norms[-1], "module": layer.ffn, "activation": activation}
        return found | {"ffn": Branch("ffn", (first, second), **more)}

    def packed(self, dtype):
        return Packed(
            self._stem, lambda front: 2 * front, [self._layer(i, dtype) for i in range(2)], self._norm()
        )

    def _stem(self, feats_BSF, lengths):
        pairs = zip(feats_BSF, lengths, strict=True)
        fronts = [self.front(feats[None, :n], torch.tensor([n])).front[0] for feats, n in pairs]
        return torch.cat(fronts), Ragged([len(front) for front in fronts])

    def _layer(self, index, dtype):
        parts = self.branches("encoder", index)
        layer = PackedTransformerLayer(parts, dtype)
        return lambda x_ND, layout, plan: layer(x_ND.clone(), layout, plan)

    def _norm(self):
        return PackedNorm(self.net.norm, torch.float32)

    def embed(self, tokens_QL):
        return self.net.embedding(tokens_QL) + self.net.positions.weight[: tokens_QL.shape[1]]

    def embed_at(self, tokens_R, position_R, longest):
        return self.net.embedding(tokens_R) + self.net.positions(position_R)

    def task_embedding(self, prompt_Q2):
        return self.net.embedding(prompt_Q2).flatten(1)

    def stem_flops(self, feature_frames):
        return self.timeline.frames(feature_frames) * self.net.stem.weight.numel()

    def decoder_input(self, batch):
        start = batch["text"].new_zeros(len(batch["text"]), 1)
        targets = torch.cat([batch["text"], start - 1], dim=1)
        lengths = (batch["text"] >= 0).sum(1) + 1
        targets[torch.arange(len(targets)), lengths - 1] = 1
        return DecoderInput(torch.cat([start, batch["text"].clamp(min=0)], dim=1), lengths, targets)

    def losses(self, x_BTD, lengths_B, logits_QLV, targets_QL, batch):
        loss = F.cross_entropy(logits_QLV.flatten(0, 1), targets_QL.flatten(), ignore_index=-1)
        return Loss(loss, loss, 1.0, (logits_QLV.argmax(-1) == targets_QL).float().mean())

    def save(self, folder, *, weights=True):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "toy.json").write_text(json.dumps({"size": SIZE}))
        if weights:
            torch.save(self.net.state_dict(), folder / "toy.pt")


def recognises(directory):
    return (directory / "toy.json").is_file()


def read_vocabulary(cfg):
    return Tokens(), WINDOW


def open_model(cfg):
    net = Net()
    if cfg["weights"] == "pretrained":
        net.load_state_dict(torch.load(f"{cfg['path']}/toy.pt", weights_only=True))
    return Toy(net)


def holds(model):
    return isinstance(model, Net)


def adopt(model, vocabulary=None):
    return Toy(model)
