"""A model behind any OpenAI-compatible server: vLLM, SGLang, LMDeploy, or a hosted one."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

from rar_mmdet.errors import ConfigError, RankerError
from rar_mmdet.rankers.asks import Letter, as_ask
from rar_mmdet.rankers.completions import Reply, read_completion
from rar_mmdet.rankers.dialect import CHOICES, QUIET, Dialect
from rar_mmdet.rankers.prompts import LETTERS
from rar_mmdet.rankers.questions import Answer, Ask, Question
from rar_mmdet.rankers.served import PNG_URL, ServedRanker, around_picture, picture_url
from rar_mmdet.rankers.server import Client, Refusal, Request
from rar_mmdet.structures import RankStatus

__all__ = ["OpenAIRanker"]

logger = logging.getLogger(__name__)

_LEAST_REST = 1e-7  # of probability: what float32 cannot tell from 1
_LETTER_TOKENS = 64  # for a letter as text: models like to write a sentence around it
_LEAST_TOKENS = 256  # for a list as text; a token is at least one byte, so longer lists get one for each byte
_MOST_PROBES = 12  # requests that a server may refuse for another field each
_IMPOSSIBLE = ("xqv7", "zwk4")
_ONE_ORDER = Letter(num_shifts=1)


class OpenAIRanker(ServedRanker):
    """Asks a chat server for letters, yes or no, or a text.

    `Likelihood` is not offered: servers score a given continuation only by prefilling the whole prompt once per
    candidate (vLLM switches its prefix cache off for `prompt_logprobs`). `Letter` costs one token per order.

    Args:
        base_url, model, limits, cache, image_size, jpeg_quality, timeout, max_retries, server: see `ServedRanker`.
        ask: a `Letter`, `YesNo` or `Generate`, or its short form; 'letter' is here one order of the candidates, for
            every further one is a request.
        extra_body: more fields of every request, such as {'chat_template_kwargs': {'enable_thinking': False}}; `None`
            for a field leaves it out. Fields of ours that the server refuses are left out, or renamed, without that.
    """

    own_fields = ("messages",)
    _dialect = Dialect()
    _label_ids: Mapping[str, int] = MappingProxyType({})  # by how labels are written, where the server lists any token

    @staticmethod
    def way_to_ask(ask: Ask | Mapping[str, Any] | str | None) -> Ask:
        """See `ServedRanker`."""
        way = _ONE_ORDER if ask in (None, "letter") else as_ask(ask)
        if way.wants == "options":
            raise ConfigError("OpenAIRanker cannot ask='decide': that is what DecisionRanker asks decision servers")
        if way.wants == "names":
            raise ConfigError(
                "OpenAIRanker cannot ask='likelihood': a server would prefill the prompt once per candidate. Use "
                "ask='letter' (one token) or 'yesno', or TransformersRanker for likelihoods"
            )
        return way

    def connect(self, key: str) -> Client[Reply]:
        """A client of chat completions."""
        return self.open_client(key, "/chat/completions", read_completion)

    def learn(self, client: Client[Reply]) -> None:
        """Find out which fields of a request the server takes."""
        self._dialect = self._learn(client)

    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """All at once, `max_concurrency` requests on the way; answers are kept as they come."""
        client, dialect = self.client, self._dialect

        def requests(question: Question) -> list[Request]:
            image, texts = picture_url(question.crop, self.jpeg_quality), self.ask.texts(question)
            texts = texts if self._gives_labels(dialect) else texts[:1]  # a text is read in the first order
            return [around_picture(image, self._request(dialect, text, question.candidates)) for text in texts]

        jobs = [lambda q=q: requests(q) for q in questions]
        for finished in client.run(jobs):
            answers = {i: self._answer_of(dialect, questions[i], replies) for i, replies in finished.items()}
            yield {i: answer for i, answer in answers.items() if answer is not None}

    def _gives_labels(self, dialect: Dialect) -> bool:
        return self.ask.wants == "labels" and dialect.top_log_probs > 0

    def _request(self, dialect: Dialect, text: str, names: Sequence[str]) -> dict[str, Any]:
        """The fields of a request, the picture still to be put in."""
        k = len(names)
        wanted: dict[str, Any] = {}
        if self._gives_labels(dialect):
            # No grammar beside log-probabilities: whether they are masked by it differs between servers.
            tokens, wanted = 1, {"logprobs": True, "top_logprobs": dialect.top_log_probs}
            forms = [form for spellings in self.ask.labels(k) for word in spellings for form in (word, f" {word}")]
            if ids := sorted({self._label_ids[form] for form in forms if form in self._label_ids}):
                wanted["logprob_token_ids"] = ids
        elif self.ask.wants == "labels":
            tokens = _LETTER_TOKENS
            if dialect.choice is not None:
                wanted = CHOICES[dialect.choice](LETTERS[:k])
        else:
            tokens = self.ask.max_new_tokens or max(_LEAST_TOKENS, len(str(list(names)).encode()))
            if dialect.grammar:
                wanted = {"response_format": _list_schema(k)}
        # The image first and the candidates last: servers reuse what prompts begin with.
        content = [{"type": "image_url", "image_url": {"url": PNG_URL}}, {"type": "text", "text": text}]
        request = {
            "messages": [{"role": "user", "content": content}],
            **wanted,
        }  # messages before all else, see `around_picture`
        request |= dialect.fields(self.model, tokens, self.extra_body)
        if request.get("logprobs") is None:
            request.pop("top_logprobs", None)
        return {name: value for name, value in request.items() if value is not None}

    def _learn(self, client: Client[Reply]) -> Dialect:
        """Ask, until the server takes it, what it can do; what it cannot is said once."""
        learned: list[str] = []
        dialect, reply = self._settle(client, Dialect(), learned)
        if self._gives_labels(dialect) and len(reply.top_log_probs or ()) < 2:  # of one label nothing can be ranked
            learned.append("log-probabilities are not given")
            dialect, reply = self._settle(client, dialect.without_log_probs(), learned)
        dialect, reply = self._quieten(client, dialect, reply)
        if self.ask.wants == "labels" and dialect.top_log_probs == 0:
            if len(self.ask.texts(Question(torch.empty(0), ("a", "b")))) > 1 and self.ask.name == "yesno":
                raise RankerError(
                    f"{client.nodes[0].url} gives no log-probabilities for {self.model}, which ask='yesno' needs; use "
                    "ask='letter' or 'generate'"
                )
            logger.warning("%s gives no log-probabilities; letters are read as text", client.nodes[0].url)
        elif learned:
            logger.warning("%s does not take every field of a request: %s", client.nodes[0].url, "; ".join(learned))
        if not self._gives_labels(dialect):
            dialect = self._prescribe(client, dialect)
        if self._gives_labels(dialect) and self._lists_what_is_asked(client, dialect):
            logger.info("%s gives the log-probabilities of all labels that are asked for", client.nodes[0].url)
        for node in client.nodes[1:]:
            if isinstance(said := self._put(client, dialect, node), Refusal):
                raise RankerError(
                    f"{node.url} rejects a request that {client.nodes[0].url} takes: {said.reason}. Several base_urls "
                    "must be servers of one kind and version"
                )
        return dialect

    def _plain_request(self, dialect: Dialect) -> dict[str, Any]:
        return self._request(dialect, "Answer with the letter A.", ("yes", "no"))

    def _put(self, client: Client[Reply], dialect: Dialect, node: Any = None) -> Reply | Refusal:
        """Put a plain request to a server."""
        return client.probe(around_picture(self._grey(), self._plain_request(dialect)), node)

    def _lists_what_is_asked(self, client: Client[Reply], dialect: Dialect) -> bool:
        """Learn the tokens of the labels, if the server tells them and lists them when asked to (vLLM since mid-2026).

        Otherwise the list ends at 20 tokens, and a label that is not in it has no more than a bound.
        """
        ids: dict[str, int] = {}
        labels, root = self.ask.labels(len(LETTERS)), client.nodes[0].url.rstrip("/").removesuffix("/v1")
        words = [form for spellings in labels for word in spellings for form in (word, f" {word}")]
        for word in dict.fromkeys(words):
            told = client.fetch(f"{root}/tokenize", {"model": self.model, "prompt": word, "add_special_tokens": False})
            tokens = told.get("tokens") if isinstance(told, dict) else None
            if tokens is None:
                break
            if len(tokens) == 1 and isinstance(tokens[0], int):
                ids[word] = tokens[0]
        self._label_ids = ids
        if ids:
            request = self._request(dialect, "Answer with the letter A.", LETTERS)
            said = client.probe(around_picture(self._grey(), request))
            listed = [] if isinstance(said, Refusal) else said.top_log_probs or []
            missing = [s for s in labels if not any(_bare(token) in (*s, *map(str.upper, s)) for token, _ in listed)]
            if missing:  # refused, or ignored
                self._label_ids = {}
        return bool(self._label_ids)

    def _quieten(self, client: Client[Reply], dialect: Dialect, reply: Reply) -> tuple[Dialect, Reply]:
        """Switch off a model's thoughts, if it has any before its answer and one of the known ways does it.

        A model told to answer with the letter A, and not about to, thinks: its first token is one of a thought's.
        """
        if self._answers_at_once(dialect, reply):
            return dialect, reply
        for number, fields in enumerate(QUIET):
            tried = replace(dialect, quiet=number)
            said = self._put(client, tried)
            if isinstance(said, Reply) and self._answers_at_once(tried, said):
                logger.info("%s thinks before it answers; switched off by %s", self.model, fields)
                return tried, said
        return dialect, reply

    def _answers_at_once(self, dialect: Dialect, reply: Reply) -> bool:
        if self._gives_labels(dialect):
            return any(_bare(token).upper() == "A" for token, _ in reply.top_log_probs or ())
        return not reply.thinks

    def _prescribe(self, client: Client[Reply], dialect: Dialect) -> Dialect:
        """The same with a prescribed form that is kept to: of two words that no model says here, one must come back.

        A server that ignores the field answers 200 all the same, as vLLM does to `guided_choice` since 0.12.
        """
        request = self._plain_request(dialect)
        if self.ask.wants == "labels":
            tries = {name: choice(_IMPOSSIBLE) for name, choice in CHOICES.items()}
        else:
            tries = {"": {"response_format": _list_schema(1, _IMPOSSIBLE)}} if dialect.grammar else {}
        for name, fields in tries.items():
            said = client.probe(around_picture(self._grey(), {**request, **fields}))
            if isinstance(said, Reply) and any(word in said.text for word in _IMPOSSIBLE):
                return replace(dialect, choice=name or None)
        if tries:
            logger.warning("%s keeps to no prescribed form of the reply; left out", client.nodes[0].url)
        return dialect.without_grammar()

    def _grey(self) -> bytes:
        """A picture that shows nothing, of the size of a crop."""
        return picture_url(torch.full((3, self.crop_size, self.crop_size), 127, dtype=torch.uint8), self.jpeg_quality)

    def _settle(self, client: Client[Reply], dialect: Dialect, learned: list[str]) -> tuple[Dialect, Reply]:
        """The first way to put a request that the server takes, and its reply."""
        said, request = self._put(client, dialect), self._plain_request(dialect)
        for _ in range(_MOST_PROBES):
            if isinstance(said, Reply):
                return dialect, said
            step = dialect.after(said.reason, request)
            if step is None:
                break
            dialect = step[0]
            learned.append(step[1])
            said, request = self._put(client, dialect), self._plain_request(dialect)
        if isinstance(said, Refusal):
            for tried, told in dialect.suspects(request):
                again = self._put(client, tried)
                if isinstance(again, Reply):
                    learned.append(told)
                    return tried, again
        reason = said.reason if isinstance(said, Refusal) else ""
        named = [name for name in self.extra_body if name in reason]
        mend = f". To leave that field out: extra_body={{{named[0]!r}: None}}" if named else client.other_models()
        raise RankerError(f"{client.nodes[0].url} rejects a plain request: {reason}{mend}")

    def _answer_of(self, dialect: Dialect, question: Question, replies: Sequence[Reply]) -> Answer | None:
        for note in (reply.note for reply in replies if reply.note):
            self._show(note)
        text = Answer(reply=replies[0].text)
        if not self._gives_labels(dialect):
            return text
        labels = self.ask.labels(len(question.candidates))
        found = [_label_scores(reply, labels) for reply in replies]
        rows = [row for row, _ in found if row is not None]
        if len(rows) == len(replies):
            return Answer(scores=tuple(rows), masses=tuple(mass for _, mass in found))
        if not rows and self.ask.read(text, question).status is not RankStatus.FALLBACK:
            return text
        listed = [[token for token, _ in reply.top_log_probs or []] for reply in replies]
        said = [reply.text for reply in replies]
        self._show(
            f"none of {[spellings[0] for spellings in labels]} among the first tokens the server lists, {listed}; it "
            f"wrote {said}. For a model that thinks first, try "
            "extra_body={'chat_template_kwargs': {'enable_thinking': False}}"
        )
        return None


def _label_scores(reply: Reply, labels: Sequence[Sequence[str]]) -> tuple[tuple[float, ...] | None, float]:
    """Log-probability of each label, in any of its spellings, as the first token, and the mass of those listed.

    No log-probabilities, and no mass, if none of them is listed.

    The probability of a label that is not listed is at most the lowest listed one, and at most what the listed ones
    leave of 1. It gets half of the smaller, the middle of what is possible (ours): below every listed label, however
    few the server lists.
    """
    # Some servers list -inf for tokens that are masked: as good as not listed.
    finite = [(token, log_prob) for token, log_prob in reply.top_log_probs or [] if math.isfinite(log_prob)]
    listed = [(_bare(token), log_prob) for token, log_prob in finite]
    # In capitals as well, but not in small letters: ' a' is an article.
    accepted = [{form for word in spellings for form in (word, word.upper())} for spellings in labels]
    found = [[log_prob for token, log_prob in listed if token in forms] for forms in accepted]
    if not any(found):
        return None, 0.0
    rest = max(1.0 - sum(math.exp(min(log_prob, 0.0)) for _, log_prob in listed), _LEAST_REST)
    unlisted = min(math.log(rest), *(log_prob for _, log_prob in listed)) - math.log(2.0)
    mass = min(sum(math.exp(min(log_prob, 0.0)) for values in found for log_prob in values), 1.0)
    return tuple(_logsumexp(values) if values else unlisted for values in found), mass


def _bare(token: str) -> str:
    """A token without the marks that tokenizers and Markdown put around a label."""
    return unicodedata.normalize("NFKC", token).strip(" \t\n.,:;()[]{}<>*`$\"'▁ĠĊ")


def _logsumexp(values: Sequence[float]) -> float:
    peak = max(values)
    return peak + math.log(sum(math.exp(value - peak) for value in values))


def _list_schema(k: int, words: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON list of K texts. Which texts is left to the parser: grammars do not enforce 'each of these once'.

    With `words` each must be one of them.
    """
    item = {"type": "string", **({"enum": list(words)} if words else {})}
    schema = {"type": "array", "items": item, "minItems": k, "maxItems": k}
    return {"type": "json_schema", "json_schema": {"name": "ranking", "schema": schema}}
