"""Decision servers: a photo and K named options in, one probability for each option out, in one prefill.

Which form of request a server takes (`decision_forms`) is found out by asking it, once, about a red and a blue square.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rar_mmdet.errors import ConfigError, RankerError
from rar_mmdet.rankers.asks import Decide, as_ask, expect_count
from rar_mmdet.rankers.completions import MalformedReplyError, reason_of
from rar_mmdet.rankers.decision_forms import FORMS, Decided, Form, read_decisions
from rar_mmdet.rankers.options import Limits
from rar_mmdet.rankers.questions import Answer, Ask, Question
from rar_mmdet.rankers.served import ServedRanker, around_picture, picture_url
from rar_mmdet.rankers.server import Client, Refusal, Request, ServerSettings

__all__ = ["DecisionRanker", "Rounds", "distinct_options"]

logger = logging.getLogger(__name__)

_TOGETHER = 256  # questions whose rounds are kept in mind at a time; those of a killed run are asked again
_COLOURS = {"red": (200, 20, 20), "blue": (20, 20, 200)}


def _json_text(body: str) -> str:
    """A reply, if it is JSON: what is in it depends on what was asked; what is none may pass."""
    try:
        json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedReplyError(f"expected JSON, got {reason_of(body) or 'nothing'}") from error
    return body


def distinct_options(candidates: Sequence[str]) -> dict[str, str]:
    """How each name is offered: servers refuse options that differ in nothing but case.

    >>> distinct_options(["bow", "Bow", "tie", "bow"])
    {'Bow': 'Bow', 'bow': 'bow (2)', 'tie': 'tie'}
    """
    options: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(set(candidates)):
        option, number = name, 2
        while option.casefold() in taken:
            option, number = f"{name} ({number})", number + 1
        taken.add(option.casefold())
        options[name] = option
    return options


class Rounds:
    """One question about more options than a server takes: groups, then the winners of the groups, and so on.

    By Luce's choice axiom (1959) the odds of two options do not depend on which others are offered: those within a
    group and those between its winner and the other winners give the odds of all. Groups are made by the alphabet, so
    the result does not depend on the order in which options come. With one group it is the server's own answer.

    Args:
        names: different options.
        most: options in one group.
    """

    def __init__(self, names: Sequence[str], most: int) -> None:
        self.most = most
        self.log_odds = dict.fromkeys(sorted(names), 0.0)  # against the winner of the option's group, added up
        self.leader = {name: name for name in self.log_odds}  # the winner that an option is measured by
        self.masses: list[float | None] = []
        self.open = list(self.log_odds)  # who is still to be compared
        self.done = len(self.open) < 2

    @property
    def groups(self) -> list[list[str]]:
        """What is to be asked next."""
        return [group for group in self._split() if len(group) > 1]

    def _split(self) -> list[list[str]]:
        """Groups of those left, whose sizes differ by one at most."""
        count = -(-len(self.open) // self.most)
        ends = [round(i * len(self.open) / count) for i in range(count + 1)]
        return [self.open[a:b] for a, b in pairwise(ends)]

    def take(self, answers: Sequence[Decided]) -> None:
        """The answers to `groups`."""
        winners = [group[0] for group in self._split() if len(group) == 1]
        for decided in answers:
            odds = {name: math.log(p) for name, p in decided.probabilities.items()}
            winner = min(odds, key=lambda name: (-odds[name], name))  # ties by name: not by order
            winners.append(winner)
            for name, leader in self.leader.items():
                if leader in odds:
                    self.log_odds[name] += odds[leader] - odds[winner]
                    self.leader[name] = winner
        self.masses = [decided.label_mass for decided in answers]
        self.open, self.done = sorted(winners), len(winners) == 1

    def answer(self, candidates: Sequence[str]) -> Answer:
        """Log-probabilities of all options, in the order of the candidates; the mass is that of the last round."""
        total = math.log(math.fsum(map(math.exp, self.log_odds.values())))
        return Answer(scores=(tuple(self.log_odds[name] - total for name in candidates),), masses=tuple(self.masses))


class DecisionRanker(ServedRanker):
    """Asks a decision server: one request, one probability for each candidate, nothing is generated.

    Args:
        base_url, model, limits, cache, image_size, jpeg_quality, timeout, max_retries, server: see `ServedRanker`.
        ask: a `Decide`, the default, or 'decide'.
        form: 'sglang', 'openai', 'systemone', 'systemone-images', 'rerank', 'sglang-rerank' or 'score'; `None`: found
            out.
        max_options: options in one question; `None`: the form's own limit (26, OpenAI 255). More are asked in rounds.
        extra_body: more fields of every request.
    """

    def __init__(
        self,
        *,
        base_url: str | Sequence[str],
        model: str,
        ask: Ask | Mapping[str, Any] | str | None = None,
        form: str | None = None,
        max_options: int | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        image_size: int = 336,
        jpeg_quality: int | None = None,
        timeout: float = 90.0,
        max_retries: int = 5,
        extra_body: Mapping[str, Any] | None = None,
        server: ServerSettings | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            base_url=base_url,
            model=model,
            ask=ask,
            limits=limits,
            cache=cache,
            image_size=image_size,
            jpeg_quality=jpeg_quality,
            timeout=timeout,
            max_retries=max_retries,
            extra_body=extra_body,
            server=server,
        )
        expect_count("max_options", max_options, optional=True)
        if max_options == 1:
            raise ConfigError("max_options must be at least 2: of one option nothing can be decided")
        known = {kind.name: kind for kind in FORMS}
        if form is not None and form not in known:
            raise ConfigError(f"form must be one of {', '.join(known)}, or None to find out, got {form!r}")
        self.max_options, self._given = max_options, form and known[form]
        self._form: type[Form] | None = None

    @staticmethod
    def way_to_ask(ask: Ask | Mapping[str, Any] | str | None) -> Ask:
        """See `ServedRanker`."""
        way = Decide() if ask is None else as_ask(ask)
        if way.wants != "options":
            raise ConfigError(f"DecisionRanker asks by 'decide' alone, got ask={ask!r}; a chat server takes other ways")
        return way

    def identity(self) -> Mapping[str, Any]:
        """See `ServedRanker`; the size of a question shapes its answer where there are rounds."""
        return {**super().identity(), "max_options": self.max_options}

    def connect(self, key: str) -> Client[str]:
        """A client that hands replies on as they are: what is in one depends on what was asked."""
        return self.open_client(key, "/decisions", _json_text)

    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """All at once, in as many rounds as their candidates need."""
        client, form = self.client, self._form
        assert form is not None
        most = self.max_options or form.most_options
        options = [distinct_options(question.candidates) for question in questions]
        rounds = [Rounds(list(names.values()), most) for names in options]
        # Those of one round all at once; a round that follows another needs the answers to all of that one.
        together = _TOGETHER if any(len(names) > most for names in options) else max(len(questions), 1)
        for start in range(0, len(questions), together):
            left = list(range(start, min(start + together, len(questions))))
            while left:
                done = [i for i in left if rounds[i].done]
                yield {i: rounds[i].answer([options[i][name] for name in questions[i].candidates]) for i in done}
                left = [i for i in left if not rounds[i].done]
                jobs = [lambda i=i: [self._request(form, questions[i], rounds[i].groups)] for i in left]
                answered = []
                for finished in client.run(jobs):
                    answers = {}
                    for i, body in ((left[job], body) for job, (body,) in finished.items()):
                        if (said := self._read_or_show(form, body, rounds[i].groups)) is None:
                            continue
                        rounds[i].take(said)
                        if rounds[i].done:
                            answers[i] = rounds[i].answer([options[i][name] for name in questions[i].candidates])
                        else:
                            answered.append(i)
                    yield answers
                left = answered

    def _read_or_show(self, form: type[Form], body: str, groups: Sequence[Sequence[str]]) -> list[Decided] | None:
        try:
            return read_decisions(form, body, groups)
        except MalformedReplyError as error:
            self._show(f"an answer cannot be used: {error}")
            return None

    def _request(self, form: type[Form], question: Question, groups: Sequence[Sequence[str]]) -> Request:
        (text,) = self.ask.texts(question)
        return self._body(form, picture_url(question.crop, self.jpeg_quality), text, groups)

    def _body(self, form: type[Form], image: bytes, text: str, groups: Sequence[Sequence[str]]) -> Request:
        fields = form.request(text, groups)  # the picture before all else of ours, see `around_picture`
        fields |= {"model": self.model, **self.extra_body}
        return around_picture(image, {name: value for name, value in fields.items() if value is not None})

    def learn(self, client: Client[str]) -> None:
        """Find the form and the path by which the server tells a red square from a blue one.

        Raises:
            RankerError: none does; all that was tried is named, with what the server said.
        """
        tried = []
        for form in (self._given,) if self._given else FORMS:
            for path in form.paths:
                for node in client.nodes:
                    node.path = path
                problems = [self._problem(client, form, node) for node in client.nodes]
                if not any(problems):
                    self._form = form
                    logger.info("%s takes the form %r at %s", client.nodes[0].url, form.name, path)
                    return
                said = next(problem for problem in problems if problem)
                at = client.nodes[next(i for i, problem in enumerate(problems) if problem)].url
                tried.append(f"{form.name} at {at}{path}: {said}")
        raise RankerError(
            f"{client.nodes[0].url} takes no form of a decision about a picture with model={self.model!r}"
            f"{client.other_models()}. Tried: {'; '.join(tried)}. For a chat server use OpenAIRanker"
        )

    def _problem(self, client: Client[str], form: type[Form], node: Any) -> str | None:
        """What keeps a form from being used; `None`: nothing."""
        told, names = [], list(_COLOURS)
        for rgb in _COLOURS.values():
            square = torch.tensor(rgb, dtype=torch.uint8)[:, None, None].expand(3, self.crop_size, self.crop_size)
            body = self._body(form, picture_url(square, self.jpeg_quality), "Which colour is the image?", [names])
            try:
                said = client.probe(body, node)
                if isinstance(said, Refusal):
                    return said.reason
                told.append(read_decisions(form, said, [names])[0].probabilities)
            except (RankerError, MalformedReplyError) as error:
                return str(error)
        if told[0] == told[1]:
            return f"a red and a blue square get the same answer {told[0]}: the picture is not looked at"
        return None
