"""A small language model that can retrieve, trained in seconds, so that methods differ offline.

Random weights answer by chance whatever is pruned. Here a two-layer Qwen2 of `transformers` learns the task that
SPIRAL poses, stripped to its core: among noise tokens stand short spans, each a topic and one of four letters; the
question is a topic, the answer the letter of its span. It is trained on audio up to the budget, "30 s", and tested
on audio three times as long, as the real model is. A second of audio is 5 tokens here instead of 25.

It measures what the paper leaves open: which positions the tokens that stay should have, what the rounded-down
budgets lose, and whether the binarised scores need their magnitudes. It says nothing about real speech.

Shape legend: B sequences, N audio tokens, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from localgp.speechprune.methods import FirstLayer, Pruner

FRAME, BUDGET, SPAN = 5, 150, 5  # tokens: in a second, in 30 s, in a planted span
LONG = 3 * BUDGET
_TOPICS, _DISTRACTORS, _SIZE, _NOISE = 24, 3, 64, 0.5


@dataclass
class Batch:
    """Sequences with the answer planted.

    Attributes:
        audio_BND: Audio tokens.
        query_BD: The question.
        answer_B: Index of the right letter.
        place_B: First token of the span that holds it.
    """

    audio_BND: Tensor
    query_BD: Tensor
    answer_B: Tensor
    place_B: Tensor


class Task:
    """Draws sequences; topics and letters are fixed by the seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.topics = torch.randn(_TOPICS, _SIZE, generator=self.generator)
        self.letters = torch.randn(4, _SIZE, generator=self.generator)

    def draw(self, batch: int, tokens: int) -> Batch:
        """``batch`` sequences of ``tokens`` audio tokens."""
        spans = 1 + _DISTRACTORS
        audio_BND = torch.randn(batch, tokens, _SIZE, generator=self.generator)
        topic = torch.stack([torch.randperm(_TOPICS, generator=self.generator)[:spans] for _ in range(batch)])
        letter = torch.randint(4, (batch, spans), generator=self.generator)
        slot = torch.stack(
            [torch.randperm(tokens // SPAN, generator=self.generator)[:spans] for _ in range(batch)]
        )
        rows = torch.arange(batch)
        for which in range(spans):
            meaning_BD = self.topics[topic[:, which]] + self.letters[letter[:, which]]
            for offset in range(SPAN):
                token_B = slot[:, which] * SPAN + offset
                audio_BND[rows, token_B] = meaning_BD + _NOISE * audio_BND[rows, token_B]
        return Batch(audio_BND, self.topics[topic[:, 0]], letter[:, 0], slot[:, 0] * SPAN)


def train(
    steps: int, seed: int, log: Callable[[int, float], None] = lambda step, loss: None
) -> tuple[Any, Task]:
    """Trains the retriever on audio of up to `BUDGET` tokens; about 30 s for 300 steps on one core."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    task = Task(seed)
    config = Qwen2Config(
        vocab_size=4, hidden_size=_SIZE, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2 * LONG, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
        for weight in model.parameters():
            if weight.ndim == 2:  # transformers' 0.02 is made for widths in the thousands
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 50, (steps + 1 - step) / 50)
        tokens = int(torch.randint(BUDGET // 3, BUDGET + 1, (1,), generator=task.generator))
        batch = task.draw(48, tokens)
        prompt = torch.cat([batch.audio_BND, batch.query_BD[:, None]], dim=1)
        loss = cross_entropy(model(inputs_embeds=prompt).logits[:, -1], batch.answer_B)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        log(step, loss.item())
    return model.eval(), task


@torch.no_grad()
def evaluate(model: Any, batch: Batch, pruner: Pruner, positions: str) -> dict[str, Any]:
    """Accuracy and recall of the planted span over a batch of long sequences.

    The untouched model (rate 0) hears the first `BUDGET` tokens, as the real one hears 30 s.
    """
    attention = model.model.layers[0].self_attn
    layer = FirstLayer(attention.q_proj.weight, attention.k_proj.weight, model.config.num_attention_heads)
    right, recall, kept_tokens = [], [], []
    for index, audio_ND in enumerate(batch.audio_BND):
        audio_ND = audio_ND[:BUDGET] if pruner.untouched else audio_ND
        query_D = batch.query_BD[index]
        kept = pruner.select(audio_ND, query_D[None], layer, str(index))
        where = torch.cat([kept, torch.tensor([len(audio_ND)])])[None] if positions == "original" else None
        prompt = torch.cat([audio_ND[kept], query_D[None]])[None]
        right.append(
            model(inputs_embeds=prompt, position_ids=where).logits[0, -1].argmax() == batch.answer_B[index]
        )
        inside = (kept >= batch.place_B[index]) & (kept < batch.place_B[index] + SPAN)
        recall.append(inside.sum() / SPAN)
        kept_tokens.append(float(len(kept)))
    return {
        "method": "original" if pruner.untouched else pruner.method,
        "rate": pruner.rate,
        "positions": positions,
        "remainder": pruner.remainder,
        "scale": pruner.scale,
        "accuracy": float(torch.stack(right).float().mean()),
        "key_recall": float(torch.stack(recall).mean()),
        "kept_tokens": sum(kept_tokens) / len(kept_tokens),
    }


def compare(
    methods: Sequence[str],
    rates: Sequence[float],
    steps: int,
    trials: int,
    seed: int,
    log: Callable[[int, float], None] = lambda step, loss: None,
) -> list[dict[str, Any]]:
    """Trains, then one row per method and rate with both positions, and the alternatives of both phases."""
    model, task = train(steps, seed, log)
    batch = task.draw(trials, LONG)
    settings = [(Pruner(rate=0, budget=BUDGET, frame=FRAME, seed=seed), "compact")]
    for rate in rates:
        for method in methods:
            base = Pruner(method=method, rate=rate, budget=BUDGET, frame=FRAME, seed=seed)
            settings += [(base, "compact"), (base, "original")]
            if method in ("both", "first"):
                settings.append((replace(base, remainder="drop"), "compact"))
            if method in ("both", "second"):
                settings.append((replace(base, scale="magnitude"), "compact"))
    return [evaluate(model, batch, pruner, positions) for pruner, positions in settings]
