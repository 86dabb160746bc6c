"""The part all asking rankers share: whom to ask, what is known already, and what becomes of the answers.

A model is reached by one method, `answer`; a way to ask says what the model is shown and what its answer means. The
rest is here: skipping, asking once, keeping, counting.
"""

from __future__ import annotations

import json
import logging
import statistics
import threading
import time
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.errors import ConfigError, RankerError
from rar_mmdet.rankers.asks import Ask, Likelihood, Reading, as_ask
from rar_mmdet.rankers.base import Ranker
from rar_mmdet.rankers.cache import hash_parts, open_answers
from rar_mmdet.rankers.options import Limits, as_options
from rar_mmdet.rankers.prompts import clean_candidate
from rar_mmdet.rankers.questions import Answer, Question
from rar_mmdet.structures import Ranking, RankStatus, Shortlist

__all__ = ["COUNTS", "AskingRanker"]

logger = logging.getLogger(__name__)

# Fewer replies than this say little about the share of bad ones; the limit is applied at the end in any case.
_MIN_REPLIES_TO_JUDGE = 100
_REPLIES_TO_SHOW = 3
# So many times the same letter is no chance, unless retrieval is nearly always right: .9^30 = 4 %.
_LETTERS_TO_JUDGE = 30
_LAST_MASSES = 1000  # regions over which the mass of labels is averaged
_LEAST_LABEL_MASS = 0.5  # on average; below it the model mostly wants to say something else than a label
COUNTS = ("regions", "skipped", "decisive", "asked", "cached", "deduped", "null_asked", "ok", "partial", "fallback")


class AskingRanker(Ranker):
    """A ranker that puts questions to a model. Several threads may call `rank` at once.

    Args:
        ask: the way to ask: a `Likelihood`, `Letter`, `YesNo` or `Generate`, a dict such as
            dict(type="Letter", num_shifts=1), or 'likelihood', 'letter', 'yesno', 'generate' for their defaults.
        limits: whom not to ask, and how many unusable answers are too many; a `Limits` or a dict of its settings.
        cache: SQLite file of answers, of which every machine gets its own (see `rankers.cache`), or a folder for them;
            `None` keeps answers for this process only.
    """

    def __init__(
        self,
        *,
        ask: Ask | Mapping[str, Any] | str = Likelihood(),  # noqa: B008 - frozen
        limits: Limits | Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self.ask, self.limits, self.cache = as_ask(ask), as_options(Limits, limits, "limits"), cache
        self.counts: Counter[str] = Counter()
        self._seconds = 0.0
        self._label_masses: deque[float] = deque(maxlen=_LAST_MASSES)
        self._letters: Counter[str] = Counter()
        self._told: Counter[str] = Counter()  # what the log has said, and how often
        self._answers = open_answers(cache)
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    # What an adapter gives.

    @abstractmethod
    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """Put questions to the model as `self.ask` says; yields answers by index, each dict is kept at once.

        An index that never comes counts as a region without a usable answer, and is asked again in the next run.
        Several threads may be in here at once.
        """

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Everything about the model that can change an answer: id, revision, weight hash, precision (JSON types)."""

    def special_tokens(self) -> Sequence[str]:
        """Texts the model obeys rather than reads."""
        return ()

    # What callers use.

    @property
    def max_candidates(self) -> int | None:  # type: ignore[override]  # never set on an asking ranker
        """The largest K it can rank; `None`: any."""
        return self.ask.max_candidates

    def rank(self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str]) -> Ranking:
        """See `Ranker.rank`.

        Raises:
            RankerError: the model is out of reach, or too many answers are unusable.
        """
        started = time.perf_counter()
        self._check_input(crops, shortlist)
        rows = self._whom_to_ask(shortlist)
        shown, questions = self._questions(crops, shortlist, category_names, rows)
        readings = self._read(questions, self._resolve(questions))
        ranking = _assemble(shortlist, rows, shown, readings)
        self._count(ranking, readings, time.perf_counter() - started)
        return ranking

    def replies(self, questions: Sequence[Question]) -> list[str | None]:
        """What the model answers in its own words; kept answers are used, equal questions are asked once.

        Args:
            questions: crops with their `words`; the way to ask must be one that wants a text, such as `Open`.

        Returns:
            The replies in order; `None` where the model gave none.

        Raises:
            ConfigError: this ranker asks for scores.
            RankerError: the model is out of reach.
        """
        if self.ask.wants != "text":
            raise ConfigError(f"{type(self.ask).__name__} asks for scores and gets no texts; use ask=dict(type='Open')")
        return [None if answer is None else answer.reply for answer in self._resolve(questions)]

    def report(self) -> dict[str, Any]:
        """What was done so far: how asked, and counts of regions and questions."""
        with self._lock:
            counts = {name: int(self.counts[name]) for name in COUNTS}
            return {
                **self.ask.report(),
                **counts,
                "seconds": round(self._seconds, 3),
                "model": dict(self.identity()),
            }

    def judge(self, counts: Mapping[str, int] | None = None) -> None:
        """See `Ranker.judge`: the share of fallbacks must not be above `limits.max_fallback_rate`."""
        self._judge(self.counts if counts is None else counts, least=1)

    # The steps of `rank`.

    def _check_input(self, crops: Tensor, shortlist: Shortlist) -> None:
        num_regions, k = len(shortlist), shortlist.depth
        square = crops.ndim == 4 and crops.shape[2] == crops.shape[3]
        if not square or crops.shape[:2] != (num_regions, 3) or crops.dtype != torch.uint8:
            raise ConfigError(
                f"crops must be ({num_regions}, 3, S, S) uint8 RGB like the shortlist, "
                f"got {tuple(crops.shape)} {crops.dtype}"
            )
        if self.max_candidates is not None and k > self.max_candidates:
            raise ConfigError(
                f"{type(self.ask).__name__} with prompt={self.ask.wording.name!r} has {self.max_candidates} letters, "
                f"got K={k} candidates; use fewer, or a prompt without letters"
            )

    def _whom_to_ask(self, shortlist: Shortlist) -> list[int]:
        """Rows whose order is open."""
        if shortlist.depth < 2:
            return []  # nothing to order
        rows = list(range(len(shortlist)))
        if self.limits.decisive_margin is not None:
            margins = (shortlist.probs[:, 0] - shortlist.probs[:, 1]).cpu()
            rows = (margins < self.limits.decisive_margin).nonzero().flatten().tolist()
        with self._lock:
            self.counts["decisive"] += len(shortlist) - len(rows)
        return rows

    def _questions(
        self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str], rows: list[int]
    ) -> tuple[list[list[int]], list[Question]]:
        """Per row the columns in the order shown, and the question."""
        special = self.special_tokens() if rows else ()
        ids = shortlist.category_ids[rows].tolist()
        names = {i: clean_candidate(category_names[i], special) for i in {i for row in ids for i in row}}
        listed = [[names[i] for i in row] for row in ids]
        shown = [self.ask.shown_order(row) for row in listed]
        questions = [
            Question(crops[row].contiguous(), tuple(candidates[c] for c in columns))
            for row, candidates, columns in zip(rows, listed, shown, strict=True)
        ]
        return shown, questions

    def _resolve(self, questions: Sequence[Question], null: bool = False) -> list[Answer | None]:
        """Answers in order: from the cache, or from the model; equal questions are asked once.

        Missing questions keep their order, batches are filled in that order and kept batch by batch: a run that was
        killed goes on with the very batches it would have had, so resuming does not change a bit of any score. Of two
        answers to one question, of threads or processes, the first that was kept counts for both.
        """
        keys = self._keys(questions)
        first: dict[str, int] = {}
        for index, key in enumerate(keys):
            first.setdefault(key, index)
        known = {key: Answer.load(text) for key, text in self._answers.get(list(first)).items()}
        missing = [key for key in first if key not in known]
        self._count_questions(len(keys), len(first), len(missing), null)
        if missing:
            for fresh in self.answer([questions[first[key]] for key in missing]):
                for index, answer in fresh.items():  # before it is kept for good
                    self.ask.check(answer, len(questions[first[missing[index]]].candidates))
                kept = self._answers.put({missing[index]: answer.dump() for index, answer in fresh.items()})
                known |= {key: Answer.load(text) for key, text in kept.items()}
        return [known.get(key) for key in keys]

    def _count_questions(self, total: int, different: int, missing: int, null: bool) -> None:
        with self._lock:
            if not null:
                self.counts["cached"] += different - missing
                self.counts["deduped"] += total - different
            self.counts["null_asked" if null else "asked"] += missing
        if different > missing and self._answers.path is not None:
            self._tell(
                "kept answers",
                f"answers kept in {self._answers.path} are used; with --no-cache or another `cache` all are asked anew",
                logging.INFO,
            )

    def _keys(self, questions: Sequence[Question]) -> list[str]:
        """Of the model, the way to ask, everything that is shown, and how an answer is kept."""
        if not questions:
            return []
        with self._lock:  # hashing weights takes its time: once, not once a thread
            model = dict(self.identity())
        settings = {"answer": Answer.layout(), "model": model, **self.ask.key()}
        head = json.dumps(settings, sort_keys=True).encode()
        keys = []
        for question in questions:
            shown = json.dumps(
                [self.ask.texts(question), self.ask.labels(len(question.candidates)), question.candidates]
            )
            shape = str(tuple(question.crop.shape)).encode()
            keys.append(hash_parts([head, shape, question.crop.numpy().data, shown.encode()]))
        return keys

    def _read(self, questions: list[Question], answers: list[Answer | None]) -> list[Reading | None]:
        """What each answer says; the first few that say nothing are shown."""
        needed = [
            self.ask.blanks(q) if answer and answer.scores else [] for q, answer in zip(questions, answers, strict=True)
        ]
        flat = [blank for blanks in needed for blank in blanks]
        found = iter(self._resolve(flat, null=True) if flat else [])
        readings: list[Reading | None] = []
        for question, answer, blanks in zip(questions, answers, needed, strict=True):
            blank_answers = [next(found) or Answer() for _ in blanks]
            readings.append(None if answer is None else self.ask.read(answer, question, blank_answers))
        for problem in (reading.problem for reading in readings if reading is not None and reading.problem):
            self._show(problem)
        return readings

    def _show(self, problem: str) -> None:
        """Log the first few answers that cannot be used."""
        with self._lock:
            self._told["problems"] += 1
            if self._told["problems"] <= _REPLIES_TO_SHOW:
                logger.warning("%s", problem)

    def _tell(self, about: str, text: str, level: int = logging.WARNING) -> None:
        """Log something once."""
        with self._lock:
            self._told[about] += 1
            if self._told[about] == 1:
                logger.log(level, "%s", text)

    def _count(self, ranking: Ranking, readings: Sequence[Reading | None], seconds: float) -> None:
        with self._lock:
            self.counts["regions"] += len(ranking)
            self._seconds += seconds
            for status in RankStatus:
                self.counts[status.name.lower()] += int((ranking.status == status).sum())
            self._watch_labels([reading for reading in readings if reading is not None])
            self._judge(self.counts, least=_MIN_REPLIES_TO_JUDGE)

    def _watch_labels(self, readings: Sequence[Reading]) -> None:
        """Say so when a model always picks the same letter, or hardly any label at all."""
        for reading in readings:
            self._letters.update(reading.letters)
            # Of names a low mass is no fault: a reply in other words, or an object that is none of them.
            if reading.label_mass is not None and self.ask.wants == "labels":
                self._label_masses.append(reading.label_mass)
        total = sum(self._letters.values())
        if total >= _LETTERS_TO_JUDGE and len(self._letters) == 1:
            (letter,) = self._letters
            self._tell(
                "constant letter",
                f"every answer so far is the letter {letter!r}, whatever stands there: the model may not see the crop, "
                "or prefer that letter. Look at some replies, average over the letters (num_shifts=None), or try "
                "another `ask`",
            )
        share = 100 * statistics.fmean(self._label_masses) if self._label_masses else 100.0
        if len(self._label_masses) >= _LETTERS_TO_JUDGE and share < 100 * _LEAST_LABEL_MASS:
            self._tell(
                "label mass",
                f"the model gives {share:.1f} % of its probability to the labels it is to choose from and wants to say "
                "something else; try another prompt, switch off its thinking, or use ask='generate'",
            )

    def _judge(self, counts: Mapping[str, int], least: int) -> None:
        bad = counts.get("fallback", 0)
        answered = counts.get("ok", 0) + counts.get("partial", 0) + bad
        if answered >= least and bad > self.limits.max_fallback_rate * answered:
            raise RankerError(
                f"{bad} of {answered} regions got no usable answer, more than "
                f"max_fallback_rate={self.limits.max_fallback_rate}. The numbers of this run would not be the "
                "ranker's. The log shows the first such answers; try another `ask` or prompt, or "
                "limits=dict(max_fallback_rate=...) if this is meant"
            )


def _assemble(
    shortlist: Shortlist, rows: list[int], shown: list[list[int]], readings: Sequence[Reading | None]
) -> Ranking:
    """The Ranking of all regions; each row depends on its own reading alone.

    Rows of text get NaN for log-probabilities when others have some: they are an order and nothing else, with or
    without such neighbours.
    """
    num_regions, k = len(shortlist), shortlist.depth
    blank = Ranking.identity(num_regions, k)
    order, status = blank.order, blank.status
    status[rows] = int(RankStatus.FALLBACK)
    log_probs = torch.full((num_regions, k), -torch.log(torch.tensor(float(max(k, 1)))).item())
    masses, presence = torch.full((2, num_regions), float("nan"))
    num_orders = max((len(reading.preferred) for reading in readings if reading is not None), default=0)
    preferred = torch.full((num_regions, num_orders), -1, dtype=torch.int64)
    replies: list[str | None] = [None] * num_regions
    scored = [i for i, reading in enumerate(readings) if reading is not None and reading.scores is not None]
    if scored:
        at, columns = torch.tensor([rows[i] for i in scored]), torch.tensor([shown[i] for i in scored])
        scores = torch.tensor([readings[i].scores for i in scored], dtype=torch.float64)  # type: ignore[union-attr]
        found = torch.empty(columns.shape).scatter_(1, columns, torch.log_softmax(scores, dim=-1).float())
        log_probs[at], status[at] = found, int(RankStatus.OK)
        # Stable: candidates the model cannot tell apart keep retrieval order.
        order[at] = found.argsort(dim=1, descending=True, stable=True)
    for i, reading in enumerate(readings):
        if reading is None:
            continue
        replies[rows[i]] = reading.reply
        if reading.label_mass is not None:
            masses[rows[i]] = reading.label_mass
        if reading.presence is not None:
            presence[rows[i]] = reading.presence
        if reading.preferred:
            preferred[rows[i]] = torch.tensor([shown[i][place] for place in reading.preferred])
        if reading.scores is None:
            order[rows[i]] = torch.tensor([shown[i][column] for column in reading.order], dtype=torch.int64)
            status[rows[i]] = int(reading.status)
            if reading.status is not RankStatus.FALLBACK:
                log_probs[rows[i]] = float("nan")
    return Ranking(
        order,
        log_probs if scored else None,
        status,
        replies=tuple(replies) if any(reply is not None for reply in replies) else None,
        label_mass=masses if bool(masses.isfinite().any()) else None,
        presence=presence if bool(presence.isfinite().any()) else None,
        preferred=preferred if num_orders > 1 else None,
    )
