"""Examples as the files of trainers: LLaVA's, OpenAI's messages (ms-swift, LLaMA-Factory), TRL's, XComposer's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rar_mmdet.finetune.examples import NONE_OF_THESE, RankingExample
from rar_mmdet.rankers.questions import Ask, Question

__all__ = ["EXPORTS", "NONE_NAME", "ExportWriter", "Turn", "answer_places", "turns_of"]

NONE_NAME = "none of these"
_NO_CROP = torch.zeros(3, 1, 1, dtype=torch.uint8)  # questions are worded without looking


@dataclass(frozen=True)
class Turn:
    """One question in words and its answer."""

    id: str
    photo: str
    text: str
    answer: str
    box_xyxy: tuple[float, float, float, float] | None = None  # what of the photo; None: all of it

    @property
    def box(self) -> dict[str, Any]:
        """For an entry: trainers that read these formats know no boxes, so cut the crops first."""
        return {} if self.box_xyxy is None else {"box_xyxy": self.box_xyxy}


def answer_places(ask: Ask, truth: int, target: Sequence[int]) -> Sequence[int]:
    """Places of the answer, best first: an answer that lists all names follows the target, whose first need not be the
    right one (mode `paper`); one that names one name names the right one."""
    lists_all = ask.wants == "text" and ask.wording.mentions_candidates
    return target if lists_all else (truth, *(place for place in target if place != truth))


def turns_of(
    example: RankingExample,
    number: int,
    photo: str,
    names: Sequence[str],
    ask: Ask,
    box_xyxy: tuple[float, float, float, float] | None = None,
) -> Iterator[Turn]:
    """What a model is shown and should say: one turn for each text of the way to ask.

    Args:
        example: the question.
        number: of the example, for ids.
        photo: path of the photo.
        names: C display names, by label.
        ask: way to ask; its own order of names is kept.
        box_xyxy: what of the photo is asked about, in pixels; `None`: all of it.
    """
    shown = [NONE_NAME if label == NONE_OF_THESE else names[label] for label in example.labels]
    order = ask.shown_order(shown)
    question = Question(_NO_CROP, tuple(shown[place] for place in order))
    target = [order.index(place) for place in answer_places(ask, example.truth, example.target)]
    texts, answers = ask.texts(question), ask.target(question, target)
    for part, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        yield Turn(f"{number}" if len(texts) == 1 else f"{number}-{part}", photo, text, answer, box_xyxy)


def _llava(turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "image": turn.photo,
        "conversations": [{"from": "human", "value": f"<image>\n{turn.text}"}, {"from": "gpt", "value": turn.answer}],
        **turn.box,
    }


def _messages(turn: Turn) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"<image>{turn.text}"},
            {"role": "assistant", "content": turn.answer},
        ],
        "images": [turn.photo],
        **turn.box,
    }


def _trl(turn: Turn) -> dict[str, Any]:
    """The place of the photo is a part of its own: TRL would read `<image>` as text, and add the photo's once more."""
    return {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turn.text}]},
            {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]},
        ],
        "images": [turn.photo],
        **turn.box,
    }


def _xcomposer(turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "image": [turn.photo],
        "conversations": [
            {"from": "user", "value": f"<ImageHere>{turn.text}"},
            {"from": "assistant", "value": turn.answer},
        ],
        **turn.box,
    }


# Name -> (file, whether it is one JSON list, one entry).
EXPORTS: dict[str, tuple[str, bool, Callable[[Turn], dict[str, Any]]]] = {
    "llava": ("llava.json", True, _llava),
    "messages": ("messages.jsonl", False, _messages),
    "trl": ("trl.jsonl", False, _trl),
    "xcomposer": ("xcomposer.json", True, _xcomposer),
}


class ExportWriter:
    """Write turns one by one; the file is there when it is whole.

    Args:
        name: of `EXPORTS`.
        folder: where its file goes.
    """

    def __init__(self, name: str, folder: Path) -> None:
        file, self._is_list, self._entry = EXPORTS[name]
        self.path = folder / file
        self._part = self.path.with_name(f"{file}.part")

    def __enter__(self) -> ExportWriter:
        self._stream = open(self._part, "w", encoding="utf-8")
        self._stream.write("[\n" if self._is_list else "")
        self._count = 0
        return self

    def add(self, turn: Turn) -> None:
        """One more."""
        comma = ",\n" if self._is_list and self._count else ""
        self._stream.write(comma + json.dumps(self._entry(turn), ensure_ascii=False) + ("" if self._is_list else "\n"))
        self._count += 1

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._is_list:
            self._stream.write("\n]\n")
        self._stream.close()
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)
