"""What a model is asked, and what it said."""

from __future__ import annotations

import json
from dataclasses import dataclass

from torch import Tensor

from rar_mmdet.errors import RankerError

__all__ = ["Answer", "Question"]


@dataclass(frozen=True, eq=False)
class Question:
    """One crop and the candidates to tell apart, in the order the prompt shows them."""

    crop: Tensor  # (3, S, S) uint8 RGB
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a model said, before any interpretation, so that a better reading needs no new question.

    scores: 'likelihood' (1, K) summed log-probabilities; 'letter' (S, K) label log-probabilities of S cyclic shifts;
        'yesno' (2, K) log p(yes), log p(no). Empty for text.
    lengths: 'likelihood': tokens of each name.
    reply: the text of 'generate', and of servers that give no log-probabilities.
    """

    scores: tuple[tuple[float, ...], ...] = ()
    lengths: tuple[int, ...] = ()
    reply: str | None = None

    def dump(self) -> str:
        """As JSON; floats survive the round trip bit for bit."""
        return json.dumps([self.scores, self.lengths, self.reply])

    @staticmethod
    def load(text: str) -> Answer:
        """From `dump`."""
        scores, lengths, reply = json.loads(text)
        return Answer(tuple(tuple(row) for row in scores), tuple(lengths), reply)

    def check_shape(self, ask: str, k: int, num_shifts: int) -> None:
        """Refuse scores that do not belong to K candidates asked about in this way.

        Raises:
            RankerError: there are too few or too many.
        """
        rows = {"likelihood": 1, "yesno": 2}.get(ask, num_shifts)
        lengths = k if ask == "likelihood" else 0
        if self.scores and ([len(row) for row in self.scores] != [k] * rows or len(self.lengths) != lengths):
            raise RankerError(
                f"an answer has scores {self.scores}, lengths {self.lengths} for K={k} candidates; ask={ask!r} needs "
                f"{rows} x {k} scores and {lengths} lengths, or a reply"
            )
