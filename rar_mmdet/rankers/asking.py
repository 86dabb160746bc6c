"""The part all asking rankers share: whom to ask, what is known already, and what the answers mean.

A model is reached by one method, `answer`; the rest is here: skipping, asking once, keeping, counting, interpreting.
"""

from __future__ import annotations

import json
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.errors import RankerError
from rar_mmdet.rankers.cache import AnswerCache, hash_parts
from rar_mmdet.rankers.parsing import parse_ranking
from rar_mmdet.rankers.prompts import FIELDS, LETTERS, Prompt, clean_candidate, load_prompts
from rar_mmdet.rankers.questions import Answer, Question
from rar_mmdet.rankers.scoring import (
    apply_temperature,
    cyclic_shifts,
    likelihood_scores,
    undo_cyclic_shifts,
    yes_margin,
)
from rar_mmdet.structures import Ranking, RankStatus, Shortlist

__all__ = ["AskingRanker", "COUNTS", "DEFAULT_PROMPTS", "expect_count"]

logger = logging.getLogger(__name__)

DEFAULT_PROMPTS = {"generate": "paper", "likelihood": "choose", "letter": "letter", "yesno": "yesno"}
# Fewer replies than this say little about the share of bad ones; the limit is applied at the end in any case.
_MIN_REPLIES_TO_JUDGE = 100
_REPLIES_TO_SHOW = 3
COUNTS = ("regions", "skipped", "decisive", "asked", "cached", "deduped", "null_asked", "ok", "partial", "fallback")
_ORDER_SLOPE = 0.6  # log-probability an order alone takes off per place; that of `RankFusion`
_FORMAT = 2  # of keys and stored answers; raise it when either changes meaning


def expect_count(name: str, value: int | None, optional: bool = False) -> None:
    """Raise unless a setting is a whole number of at least 1, or `None` where that is allowed."""
    if not (optional and value is None) and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a whole number of at least 1{' or None' * optional}, got {value!r}")


class AskingRanker(ABC):
    """A ranker that puts questions to a model.

    Args:
        ask: 'likelihood', 'letter', 'yesno' or 'generate'.
        prompt: name of the prompt; `None` for the usual one of that way to ask.
        prompts: JSON file of {name: text} that adds to or replaces the prompts of this package.
        score: for 'likelihood': 'sum', 'mean' (per token) or 'pmi' (against a blank crop).
        pmi_weight: how much of the blank crop's score 'pmi' subtracts.
        num_shifts: for 'letter': cyclic shifts averaged to remove the position bias; `None` for all K, 1 for none.
        temperature: divides the scores before they are normalised; `tools/calibrate_ranker.py` fits it.
        decisive_margin: regions whose best two retrieval probabilities differ by this much or more are not asked
            about; `None` asks about all.
        max_fallback_rate: share of asked regions without a usable answer above which the run fails.
        cache: SQLite file of answers; `None` keeps them for this process only.
    """

    def __init__(
        self,
        *,
        ask: str = "likelihood",
        prompt: str | None = None,
        prompts: str | Path | None = None,
        score: str = "sum",
        pmi_weight: float = 1.0,
        num_shifts: int | None = None,
        temperature: float = 1.0,
        decisive_margin: float | None = None,
        max_fallback_rate: float = 0.2,
        cache: str | Path | None = None,
    ) -> None:
        self.ask, self.score, self.pmi_weight, self.num_shifts = ask, score, pmi_weight, num_shifts
        self.temperature, self.decisive_margin = temperature, decisive_margin
        self.max_fallback_rate = max_fallback_rate
        self._check_settings()
        known = load_prompts(prompts)
        prompt = prompt or DEFAULT_PROMPTS[ask]
        if prompt not in known:
            raise ValueError(
                f"prompt={prompt!r} is not known; known are {sorted(known)}, or give your own in `prompts`"
            )
        self.prompt: Prompt = known[prompt]
        self._check_prompt()
        self.counts: Counter[str] = Counter()
        self._shown_replies, self._told_of_cache = 0, False
        self.cache = cache
        self._answers = AnswerCache(cache)

    def _check_settings(self) -> None:
        if self.ask not in DEFAULT_PROMPTS:
            raise ValueError(f"ask must be one of {sorted(DEFAULT_PROMPTS)}, got {self.ask!r}")
        if self.score not in ("sum", "mean", "pmi"):
            raise ValueError(f"score must be 'sum', 'mean' or 'pmi', got {self.score!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if not 0 <= self.max_fallback_rate <= 1:
            raise ValueError(f"max_fallback_rate must be in [0, 1], got {self.max_fallback_rate}")
        expect_count("num_shifts", self.num_shifts, optional=True)
        if self.decisive_margin is not None and not self.decisive_margin >= 0:
            raise ValueError(f"decisive_margin must be at least 0, or None to ask always, got {self.decisive_margin}")

    def _check_prompt(self) -> None:
        text, named = self.prompt.text, "{name}" in self.prompt.text
        lettered = "{options}" in text or "{option_lines}" in text
        given = f"{self.prompt.name!r} is {text!r}"
        if named != (self.ask == "yesno"):
            raise ValueError(
                f"ask='yesno', and no other, needs a prompt with {{name}} in it; ask={self.ask!r}, {given}"
            )
        if unknown := self.prompt.unknown_fields:
            raise ValueError(f"no placeholder {unknown[0]!r}; there are {', '.join(FIELDS)}: {given}")
        if self.ask == "letter" and not lettered:
            raise ValueError(f"ask='letter' needs a prompt with {{options}} or {{option_lines}} in it, {given}")
        if self.ask == "generate" and not self.prompt.mentions_candidates:
            raise ValueError(f"ask='generate' needs a prompt that shows the candidates, {given}")

    # What an adapter gives.

    @abstractmethod
    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """Put questions to the model; yields answers by index, each dict is kept at once.

        An index that never comes counts as a region without a usable answer, and is asked again in the next run.
        """

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Everything about the model that can change an answer: id, revision, weight hash, precision (JSON types)."""

    def missing_assets(self) -> list[str]:
        """What has to be fetched before this ranker can run, one line each."""
        return []

    def load(self, device: torch.device | str | None = None) -> None:  # noqa: B027 - many have nothing to load
        """Say where the model is to run."""

    def special_tokens(self) -> Sequence[str]:
        """Texts the model obeys rather than reads."""
        return ()

    # What callers use.

    @property
    def max_candidates(self) -> int | None:
        """The largest K it can rank; `None`: any."""
        return len(LETTERS) if self.prompt.has_letters else None

    def rank(self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str]) -> Ranking:
        """See `Ranker.rank`.

        Raises:
            RankerError: the model is out of reach, or too many answers are unusable.
        """
        started = time.perf_counter()
        self._check_input(crops, shortlist)
        rows = self._whom_to_ask(shortlist).nonzero().flatten().tolist()
        shown, questions = self._questions(crops, shortlist, category_names, rows)
        answers = self._resolve(questions)
        ranking = self._interpret(len(shortlist), shortlist.depth, rows, shown, questions, answers)
        self._count(ranking, time.perf_counter() - started)
        return ranking

    def evidence(self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str]) -> Tensor:
        """(R, K) float32 in [0, 1], p(yes) of each candidate on its own; NaN without an answer. 'yesno' only.

        Unlike `Ranking.log_probs` this is comparable across regions: all candidates of a region may be unlikely.
        """
        if self.ask != "yesno":
            raise ValueError(f"evidence is what ask='yesno' gives; this ranker has ask={self.ask!r}")
        self._check_input(crops, shortlist)
        rows = list(range(len(shortlist)))
        shown, questions = self._questions(crops, shortlist, category_names, rows)
        result = torch.full(tuple(shortlist.category_ids.shape), float("nan"))
        for row, columns, answer in zip(rows, shown, self._resolve(questions), strict=True):
            if answer is not None and answer.scores:
                result[row, columns] = yes_margin(torch.tensor(answer.scores, dtype=torch.float64)).sigmoid().float()
        return result

    def report(self) -> dict[str, Any]:
        """What was done so far: how asked, and counts of regions and questions; to be stored with the results."""
        counts = {name: int(self.counts[name]) for name in COUNTS}
        settings = {"ask": self.ask, "prompt": self.prompt.name, "temperature": self.temperature}
        if self.ask == "likelihood":
            settings["score"] = self.score
        return {
            **settings,
            **counts,
            "seconds": round(float(self.counts["seconds"]), 3),
            "model": dict(self.identity()),
        }

    def forget_counts(self) -> None:
        """Start counting from zero."""
        self.counts.clear()

    # The steps of `rank`.

    def _check_input(self, crops: Tensor, shortlist: Shortlist) -> None:
        num_regions, k = len(shortlist), shortlist.depth
        square = crops.ndim == 4 and crops.shape[2] == crops.shape[3]
        if not square or crops.shape[:2] != (num_regions, 3) or crops.dtype != torch.uint8:
            raise ValueError(
                f"crops must be ({num_regions}, 3, S, S) uint8 RGB like the shortlist, "
                f"got {tuple(crops.shape)} {crops.dtype}"
            )
        if self.max_candidates is not None and k > self.max_candidates:
            raise ValueError(
                f"ask={self.ask!r} with prompt={self.prompt.name!r} has {self.max_candidates} letters, got K={k} "
                "candidates; use fewer, or a prompt without letters"
            )

    def _questions(
        self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str], rows: list[int]
    ) -> tuple[list[list[int]], list[Question]]:
        """Per row the columns in the order shown, and the question."""
        special = self.special_tokens() if rows else ()
        ids = shortlist.category_ids[rows].tolist()
        names = {i: clean_candidate(category_names[i], special) for i in {i for row in ids for i in row}}
        listed = [[names[i] for i in row] for row in ids]
        shown = [self._shown_order(row) for row in listed]
        questions = [
            Question(crops[row].contiguous(), tuple(candidates[c] for c in columns))
            for row, candidates, columns in zip(rows, listed, shown, strict=True)
        ]
        return shown, questions

    def _whom_to_ask(self, shortlist: Shortlist) -> Tensor:
        wanted = torch.ones(len(shortlist), dtype=torch.bool)
        if shortlist.depth < 2:
            wanted[:] = False  # nothing to order
        elif self.decisive_margin is not None:
            decisive = (shortlist.probs[:, 0] - shortlist.probs[:, 1]).cpu() >= self.decisive_margin
            self.counts["decisive"] += int((wanted & decisive).sum())
            wanted &= ~decisive
        return wanted

    def _shown_order(self, names: Sequence[str]) -> list[int]:
        """Columns in the order the prompt shows them.

        Where the order should not matter it is the alphabet's: the answer then cannot depend on retrieval order, and
        equal sets of candidates share one question. Text and letters follow retrieval, as in the paper.
        """
        columns = list(range(len(names)))
        return sorted(columns, key=lambda c: names[c]) if self.ask in ("likelihood", "yesno") else columns

    def _resolve(self, questions: Sequence[Question], null: bool = False) -> list[Answer | None]:
        """Answers in order: from the cache, or from the model; equal questions are asked once.

        Missing questions keep their order, batches are filled in that order and kept batch by batch: a run that was
        killed goes on with the very batches it would have had, so resuming does not change a bit of any score.
        """
        keys = self._keys(questions)
        first: dict[str, int] = {}
        for index, key in enumerate(keys):
            first.setdefault(key, index)
        known = {key: Answer.load(text) for key, text in self._answers.get(list(first)).items()}
        missing = [key for key in first if key not in known]
        if known and self._answers.path is not None and not self._told_of_cache:
            self._told_of_cache = True
            logger.info("answers kept in %s are used; with --no-cache all are asked anew", self._answers.path)
        if not null:
            self.counts["cached"] += len(known)
            self.counts["deduped"] += len(keys) - len(first)
        self.counts["null_asked" if null else "asked"] += len(missing)
        if missing:
            for fresh in self.answer([questions[first[key]] for key in missing]):
                for index, answer in fresh.items():  # before it is kept for good
                    k = len(questions[first[missing[index]]].candidates)
                    answer.check_shape(self.ask, k, num_shifts=len(self.shifts(k)))
                by_key = {missing[index]: answer for index, answer in fresh.items()}
                self._answers.put({key: answer.dump() for key, answer in by_key.items()})
                known |= by_key
        return [known.get(key) for key in keys]

    def _keys(self, questions: Sequence[Question]) -> list[str]:
        if not questions:
            return []
        settings = {
            "format": _FORMAT,
            "model": dict(self.identity()),
            "ask": self.ask,
            "prompt": self.prompt.text,
            "num_shifts": self.num_shifts if self.ask == "letter" else None,
        }
        head = json.dumps(settings, sort_keys=True).encode()
        return [
            hash_parts(
                [
                    head,
                    str(tuple(q.crop.shape)).encode(),
                    q.crop.numpy().data,
                    *(c.encode("utf-8", "surrogatepass") for c in q.candidates),
                ]
            )
            for q in questions
        ]

    def _interpret(
        self,
        num_regions: int,
        k: int,
        rows: list[int],
        shown: list[list[int]],
        questions: list[Question],
        answers: list[Answer | None],
    ) -> Ranking:
        ranking = Ranking.identity(num_regions, k)
        order, status = ranking.order, ranking.status
        status[rows] = int(RankStatus.FALLBACK)
        log_probs = torch.full((num_regions, k), -torch.log(torch.tensor(float(max(k, 1)))).item())
        scored = [i for i, answer in enumerate(answers) if answer is not None and answer.scores]
        if scored:
            values = self._scores([questions[i] for i in scored], [answers[i] for i in scored])
            # Rounding must not tell candidates of one name apart.
            firsts = [[names.index(name) for name in names] for names in (questions[i].candidates for i in scored)]
            values = values.gather(1, torch.tensor(firsts))
            usable = values.isfinite().all(dim=1)
            if not usable.all():
                bad = int(usable.logical_not().nonzero()[0])
                self._show(
                    f"scores of {list(questions[scored[bad]].candidates)} are not finite: {values[bad].tolist()}; "
                    "damaged weights, or a precision too small for the model (try dtype='float32' or 'bfloat16')"
                )
            at = torch.tensor([rows[i] for i in scored])[usable]
            columns = torch.tensor([shown[i] for i in scored])[usable]
            found = torch.empty(columns.shape).scatter_(1, columns, apply_temperature(values[usable], self.temperature))
            log_probs[at], status[at] = found, int(RankStatus.OK)
            # Stable: candidates the model cannot tell apart keep retrieval order.
            order[at] = found.argsort(dim=1, descending=True, stable=True)
        for i, answer in enumerate(answers):
            if answer is not None and answer.reply is not None:
                parsed = parse_ranking(answer.reply, questions[i].candidates)
                row = rows[i]
                order[row] = torch.tensor([shown[i][j] for j in parsed.order], dtype=torch.int64)
                status[row] = int(parsed.status)
                # Beside rows with log-probabilities an order must not read as indifference.
                log_probs[row, order[row]] = (-_ORDER_SLOPE * torch.arange(k)).log_softmax(0)
                if parsed.status == RankStatus.FALLBACK:
                    self._show(
                        f"no candidate found in the reply {answer.reply[:300]!r} to {list(questions[i].candidates)}"
                    )
        return Ranking(order, log_probs if scored else None, status)

    def _show(self, problem: str) -> None:
        """Log the first few answers that cannot be used."""
        if self._shown_replies < _REPLIES_TO_SHOW:
            self._shown_replies += 1
            logger.warning("%s", problem)

    def _scores(self, questions: list[Question], answers: Sequence[Answer | None]) -> Tensor:
        """(R, K) float64 scores of the candidates as shown, from answers that have scores."""
        raw = torch.tensor([answer.scores for answer in answers if answer], dtype=torch.float64)  # (R, S, K)
        if self.ask == "letter":
            return undo_cyclic_shifts(raw, self.shifts(raw.shape[-1]))
        if self.ask == "yesno":
            return yes_margin(raw)
        lengths = torch.tensor([answer.lengths for answer in answers if answer])
        null_sums = self._null_sums(questions) if self.score == "pmi" else None
        return likelihood_scores(raw[:, 0], lengths, self.score, null_sums, self.pmi_weight)

    def shifts(self, k: int) -> list[list[int]]:
        """The orders in which 'letter' shows K candidates."""
        return cyclic_shifts(k, k if self.num_shifts is None else self.num_shifts)

    def _null_sums(self, questions: list[Question]) -> Tensor:
        """(R, K) log p(name | blank crop); without candidates in the prompt each name is asked about once."""
        blank = torch.full_like(questions[0].crop, 127) if questions else None
        assert blank is not None, "asked only with questions"
        if self.prompt.varies_with_candidates:
            groups = [q.candidates for q in questions]
        else:
            groups = [(name,) for q in questions for name in q.candidates]
        answers = self._resolve([Question(blank, group) for group in groups], null=True)
        flat = [
            a.scores[0] if a and a.scores else (float("nan"),) * len(g) for a, g in zip(answers, groups, strict=True)
        ]
        return torch.tensor([value for row in flat for value in row], dtype=torch.float64).reshape(len(questions), -1)

    def _count(self, ranking: Ranking, seconds: float) -> None:
        self.counts["regions"] += len(ranking)
        self.counts["seconds"] += seconds  # type: ignore[assignment]  # Counter of ints in typing only
        for status in RankStatus:
            self.counts[status.name.lower()] += int((ranking.status == status).sum())
        self.judge(least=_MIN_REPLIES_TO_JUDGE)

    def judge(self, counts: Mapping[str, int] | None = None, least: int = 1) -> None:
        """Refuse results that are not the ranker's.

        Args:
            counts: 'ok', 'partial' and 'fallback' regions, of all processes; `None` for this one's.
            least: with fewer answers there is no verdict.

        Raises:
            RankerError: the share of fallbacks is above `max_fallback_rate`.
        """
        counts = self.counts if counts is None else counts
        answered = counts["ok"] + counts["partial"] + counts["fallback"]
        if answered >= least and counts["fallback"] > self.max_fallback_rate * answered:
            raise RankerError(
                f"{counts['fallback']} of {answered} regions got no usable answer, more than "
                f"max_fallback_rate={self.max_fallback_rate}. The numbers of this run would not be the ranker's. The "
                "log shows the first such answers; try another `ask` or `prompt`, or raise max_fallback_rate if this "
                "is meant"
            )
