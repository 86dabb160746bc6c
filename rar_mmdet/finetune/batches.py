"""Taught questions as tensors: the very tokens a ranker is asked with, and the answers behind them.

Several texts about one crop (letters in several orders, yes or no to each candidate) share image and opening: they go
into one row, each seeing the shared prefix and itself only, as `rankers.prefix` scores them. The loss is that of one
row for each text, and the image is encoded once.

Shape letters: B rows, L tokens, A tokens from the first answer's first on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rar_mmdet.errors import RankerLoadError
from rar_mmdet.finetune.rows import TaughtQuestion
from rar_mmdet.rankers.dialogue import common_prefix
from rar_mmdet.rankers.loaded_model import LoadedModel
from rar_mmdet.rankers.prefix import prefix_positions

__all__ = ["BatchMaker", "answer_loss", "answer_losses"]

IGNORED = -100  # label of what is no answer (PyTorch's and transformers' own)
OURS = ("labels", "segments", "places")


@dataclass(frozen=True)
class _Segment:
    """What follows a prefix: the end of a text, and its answer."""

    tokens: tuple[int, ...]
    answer: int  # of these, at the end


class BatchMaker:
    """A collator.

    Args:
        loaded: processor and dialogue of the model.
        is_packed: whether texts about one crop share a row.
    """

    def __init__(self, loaded: LoadedModel, is_packed: bool = True) -> None:
        self.loaded, self.is_packed = loaded, is_packed

    def __call__(self, taught: Sequence[TaughtQuestion]) -> dict[str, Tensor]:
        """The processor's tensors with input_ids (B, L), left-padded, and

        labels (B, A + 1): `IGNORED`, or the answer's token, of the last A + 1 columns; the first column is never one.
        segments (B, L): -1 padding, 0 prefix, 1, 2, ... the texts that share it.
        places (B, L): of a token in its segment; -1 in the prefix.
        """
        parts = [
            (one.question, pairs)
            for one in taught
            for pairs in self._shared(list(zip(one.texts, one.answers, strict=True)))
        ]
        prompts = [self.loaded.dialogue.text(pairs[0][0]) for _, pairs in parts]
        batch = self.loaded.prepare([question for question, _ in parts], prompts)
        trims, segments = zip(*(self._segments(pairs) for _, pairs in parts), strict=True)
        return self._joined(batch, trims, segments)

    def _shared(self, pairs: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
        return [pairs] if self.is_packed else [[pair] for pair in pairs]

    def _segments(self, pairs: Sequence[tuple[str, str]]) -> tuple[int, list[_Segment]]:
        """How many tokens of the first prompt's end are taken off, and what follows what is left."""
        talk = self.loaded.dialogue
        backs, answers = zip(*(talk.continuations([answer], end=True) for _, answer in pairs), strict=True)
        if len(pairs) == 1:
            tokens = tuple(answers[0][0])
            return backs[0], [_Segment(tokens, len(tokens))]
        tails = [talk.tail(text) for text, _ in pairs]
        kept = [tail[: len(tail) - back] for tail, back in zip(tails, backs, strict=True)]
        # At least one token of each text is its own: it predicts the answer's first.
        shared = min(common_prefix(kept), min(map(len, kept)) - 1)
        found = [
            _Segment((*tail[shared:], *tokens), len(tokens)) for tail, (tokens,) in zip(kept, answers, strict=True)
        ]
        return len(tails[0]) - shared, found

    def _joined(
        self, batch: dict[str, Tensor], trims: Sequence[int], segments: Sequence[Sequence[_Segment]]
    ) -> dict[str, Tensor]:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        per_token = [n for n, v in batch.items() if v.shape == ids.shape and not v.is_floating_point()]
        reals = [int(row.sum()) - trim for row, trim in zip(mask, trims, strict=True)]
        behind = [sum(len(segment.tokens) for segment in row) for row in segments]
        length = max(real + extra for real, extra in zip(reals, behind, strict=True))
        made = {name: batch[name].new_zeros(len(ids), length) for name in per_token}
        made["input_ids"] += self.loaded.pad_id
        made["attention_mask"].zero_()
        labels = ids.new_full((len(ids), length), IGNORED)
        numbers, places = ids.new_full((len(ids), length), -1), ids.new_full((len(ids), length), -1)
        for row, (real, extra, trim) in enumerate(zip(reals, behind, trims, strict=True)):
            start, end = length - extra - real, ids.shape[1] - trim
            for name in per_token:
                made[name][row, start : start + real] = batch[name][row, end - real : end]
            numbers[row, start : start + real] = 0
            at = start + real
            for number, segment in enumerate(segments[row], 1):
                stop = at + len(segment.tokens)
                made["input_ids"][row, at:stop] = torch.tensor(segment.tokens)
                made["attention_mask"][row, at:stop] = 1
                labels[row, stop - segment.answer : stop] = made["input_ids"][row, stop - segment.answer : stop]
                numbers[row, at:stop] = number
                places[row, at:stop] = torch.arange(stop - at)
                at = stop
        first = int((labels != IGNORED).any(dim=0).int().argmax())
        if first == 0:
            raise RankerLoadError("a prompt is empty, so nothing predicts its answer")
        rest = {name: value for name, value in batch.items() if name not in per_token}
        return {**rest, **made, "labels": labels[:, first - 1 :], "segments": numbers, "places": places}


def answer_losses(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """(B, A) cross-entropy at the answers' tokens, 0 elsewhere.

    Args:
        model: whose forward is called; may be wrapped by PEFT, DDP or FSDP.
        batch: of `BatchMaker`, on the model's device.
    """
    inputs = {name: value for name, value in batch.items() if name not in OURS}
    labels, segments, places = (batch[name] for name in OURS)
    positions = _positions(_innermost(model), inputs, segments, places)
    if int(segments.max()) > 1:
        inputs["attention_mask"] = _mask_of(segments, _innermost(model).dtype)
    logits = model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=labels.shape[1]).logits
    # Of float32 copies of all logits only the answers' own are made.
    wanted = labels[:, 1:]
    is_answer = wanted != IGNORED
    losses = functional.cross_entropy(logits[:, :-1][is_answer].float(), wanted[is_answer], reduction="none")
    return torch.zeros(wanted.shape, device=losses.device).masked_scatter(is_answer, losses)


def answer_loss(model: Any, batch: Mapping[str, Tensor], count: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy of the answers' tokens.

    Args:
        model, batch: see `answer_losses`.
        count: of tokens to divide by, where this batch is a part of a larger one.
    """
    return answer_losses(model, batch).sum() / (count if count is not None else (batch["labels"] != IGNORED).sum())


def _innermost(model: Any) -> Any:
    """The model of transformers within wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _positions(model: Any, inputs: Mapping[str, Tensor], segments: Tensor, places: Tensor) -> Tensor:
    """Each segment goes on where the prefix ends: (B, L), or (3, B, L) with M-RoPE."""
    positions, _ = prefix_positions(model, inputs)
    following = positions.masked_fill(segments != 0, -1).amax(dim=-1) + 1  # (B,) or (3, B)
    if following.ndim == 2:
        following = following.amax(dim=0)
    return torch.where(places >= 0, following[:, None] + places, positions)


def _mask_of(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, L, L) additive: earlier tokens of the prefix and of the own segment; padding sees itself.

    Additive, because eager attention would add a boolean one as 0 and 1.
    """
    length = segments.shape[1]
    own = segments[:, :, None] == segments[:, None, :]
    of_prefix = (segments[:, None, :] == 0) & (segments[:, :, None] >= 0)
    visible = (own | of_prefix) & torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
