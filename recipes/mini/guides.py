"""Where cross-attention should look: frames of each target token, from alignments that cost nothing to learn.

Transcripts are aligned to frames by the encoder's own CTC output, translations to transcripts by IBM model 1 on
the training sentences (Brown et al., 1993). A decoder that is told so aligns within a few hundred steps; left to
itself it stays a language model for thousands.

Shape legend: B utterances, T encoder frames, V vocabulary, S = 2 L + 1 states, L tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from batches import TEXT_START, Batches
from torch import Tensor

UNGUIDED = (-1, -1)
_CONFIDENT = 0.15  # translation probability under which a word is left unguided


def ctc_spans(log_probs_BTV: Tensor, targets: Sequence[Sequence[int]], blank: int = 0) -> list[np.ndarray]:
    """The frames of each token on the best CTC path.

    Returns:
        Per utterance (L, 2): first and last frame of every token.
    """
    batch, frames, _ = log_probs_BTV.shape
    states = 2 * max(len(t) for t in targets) + 1
    labels_BS = torch.full((batch, states), blank)
    for row, target in enumerate(targets):
        labels_BS[row, 1 : 2 * len(target) : 2] = torch.tensor(target)
    emit_BTS = log_probs_BTV.gather(2, labels_BS[:, None].expand(-1, frames, -1))
    skip_BS = torch.zeros(batch, states, dtype=torch.bool)
    skip_BS[:, 2:] = (labels_BS[:, 2:] != blank) & (labels_BS[:, 2:] != labels_BS[:, :-2])
    score_BS = torch.full((batch, states), -torch.inf)
    score_BS[:, :2] = emit_BTS[:, 0, :2]
    came_from = np.zeros((frames, batch, states), np.int8)
    lowest_B2 = torch.full((batch, 2), -torch.inf)
    for frame in range(1, frames):
        one = torch.cat([lowest_B2[:, :1], score_BS[:, :-1]], 1)
        two = torch.cat([lowest_B2, score_BS[:, :-2]], 1).masked_fill(~skip_BS, -torch.inf)
        score_BS, choice = torch.stack([score_BS, one, two]).max(0)
        score_BS = score_BS + emit_BTS[:, frame]
        came_from[frame] = choice.numpy()
    spans = []
    for row, target in enumerate(targets):
        state = 2 * len(target)
        state -= int(score_BS[row, state - 1] > score_BS[row, state])
        span = np.zeros((len(target), 2), np.int64)
        for frame in range(frames - 1, -1, -1):
            if state % 2:
                span[state // 2, 0] = frame
                span[state // 2, 1] = max(span[state // 2, 1], frame)
            state -= int(came_from[frame, row, state])
        spans.append(span)
    return spans


def word_of_token(pieces: Sequence[str]) -> np.ndarray:
    """The number of the word that each BPE piece belongs to."""
    return np.maximum(np.cumsum([piece.startswith("▁") for piece in pieces]) - 1, 0)


def stems(text: str) -> list[str]:
    """The words of a text without elided articles, punctuation and most of the inflection."""
    return [word.split("'")[-1].strip(".,;:?!")[:6] or word for word in text.split()]


def align_words(
    sources: Sequence[list[str]], targets: Sequence[list[str]], rounds: int = 6
) -> list[np.ndarray]:
    """IBM model 1 on sentence pairs.

    Returns:
        Per sentence, for each target word the position of its source word, -1 where the model is not sure.
    """
    source_ids = {word: i for i, word in enumerate(sorted(set(itertools.chain(*sources))))}
    target_ids = {word: i for i, word in enumerate(sorted(set(itertools.chain(*targets))))}
    heads, left, right, begin = [], [], [], 0
    for source, target in zip(sources, targets, strict=True):
        s, t = (
            np.array([ids[w] for w in words]) for ids, words in ((source_ids, source), (target_ids, target))
        )
        left.append(np.tile(s, len(t)))
        right.append(np.repeat(t, len(s)))
        heads.append(np.repeat(np.arange(begin, begin + len(t)), len(s)))
        begin += len(t)
    head, source_word = np.concatenate(heads), np.concatenate(left)
    keys, pair = np.unique(source_word * len(target_ids) + np.concatenate(right), return_inverse=True)
    owner = keys // len(target_ids)
    probability = np.ones(len(keys))
    for _ in range(rounds):
        weight = probability[pair]
        weight /= np.bincount(head, weight)[head]
        count = np.bincount(pair, weight)
        probability = count / np.bincount(owner, count)[owner]
    result, at = [], 0
    for source, target in zip(sources, targets, strict=True):
        table = probability[pair[at : at + len(source) * len(target)]].reshape(len(target), len(source))
        at += table.size
        result.append(np.where(table.max(1) >= _CONFIDENT, table.argmax(1), -1))
    return result


class Guides:
    """Frames for the tokens of any target of any utterance.

    Args:
        texts: Per utterance, text by language.
        pieces: Per utterance, BPE pieces by language.
        languages: Per utterance, the one spoken.
    """

    def __init__(
        self, texts: list[dict[str, str]], pieces: list[dict[str, list[str]]], languages: list[str]
    ) -> None:
        self._words = [{code: word_of_token(p) for code, p in item.items()} for item in pieces]
        self._languages = languages
        codes = sorted(texts[0])
        cut = {code: [stems(text[code]) for text in texts] for code in codes}
        self._aligned = {(a, b): align_words(cut[a], cut[b]) for a, b in itertools.permutations(codes, 2)}

    def frames(self, index: int, target: str, span_L2: np.ndarray) -> np.ndarray:
        """(L, 2) first and last frame for each token of the target text, `UNGUIDED` where not known.

        Args:
            span_L2: Frames of the transcript's tokens.
        """
        source = self._languages[index]
        if target == source:
            return span_L2
        spoken, written = self._words[index][source], self._words[index][target]
        result = np.full((len(written), 2), -1)
        for token, word in enumerate(written):
            at = self._aligned[source, target][index]
            where = np.flatnonzero(spoken == at[word]) if word < len(at) and at[word] >= 0 else []
            if len(where):
                result[token] = span_L2[where[0], 0], span_L2[where[-1], 1]
        return result


def guided_frames(
    batches: Batches,
    guides: Guides,
    indices: np.ndarray,
    spans: list[np.ndarray],
    sequences: dict[str, Tensor],
) -> Tensor:
    """(Q, L, 2) frames for every decoder query, that is, for the token it predicts; negative where not guided."""
    previous = sequences["text_prev_lengths"] + 1  # <sop> previous <sos>: the texts begin so much later
    previous[(sequences["text_prev"] == batches.tokenizer.na).any(1)] = 0
    longest = int((previous + sequences["text_lengths"]).max()) + 1
    frames_QL2 = torch.full((len(previous), longest, 2), -1)
    sequence = 0
    for index, span in zip(indices, spans, strict=True):
        for target in batches.tokens[index]:
            known = torch.from_numpy(guides.frames(int(index), target, span))
            begin = int(previous[sequence]) + TEXT_START
            frames_QL2[sequence, begin : begin + len(known)] = known
            sequence += 1
    return frames_QL2


def guide_loss(attention_QHLT: Tensor, frames_QL2: Tensor, margin: int = 1) -> Tensor:
    """Minus the log of the attention that falls on the guided frames, averaged over guided tokens.

    Args:
        attention_QHLT: Cross-attention of the heads that are guided.
        frames_QL2: First and last frame per query; negative where there is none.
        margin: Frames allowed on either side.
    """
    frames = attention_QHLT.shape[-1]
    total = torch.cat([torch.zeros_like(attention_QHLT[..., :1]), attention_QHLT], -1).float().cumsum(-1)
    heads = attention_QHLT.shape[1]
    first = (frames_QL2[..., 0] - margin).clamp(0, frames)[:, None, :, None].expand(-1, heads, -1, 1)
    last = (frames_QL2[..., 1] + 1 + margin).clamp(0, frames)[:, None, :, None].expand(-1, heads, -1, 1)
    mass = (total.gather(-1, last) - total.gather(-1, first)).squeeze(-1)
    guided = (frames_QL2[..., 0] >= 0)[:, None].expand_as(mass)
    return -mass[guided].clamp(1e-4).log().mean()
