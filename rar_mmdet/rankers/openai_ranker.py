"""A model behind any OpenAI-compatible server: vLLM, SGLang, LMDeploy, or a hosted one."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import socket
import string
import struct
import time
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.errors import ConfigError, MissingAssetError, RankerError
from rar_mmdet.rankers.asking import AskingRanker
from rar_mmdet.rankers.asks import Letter, expect_count
from rar_mmdet.rankers.completions import Reply
from rar_mmdet.rankers.dialect import Dialect
from rar_mmdet.rankers.options import Limits, as_options
from rar_mmdet.rankers.prompts import LETTERS
from rar_mmdet.rankers.questions import Answer, Ask, Question
from rar_mmdet.rankers.server import Client, Refusal, Request, ServerSettings, proxy_of, without_user
from rar_mmdet.structures import RankStatus

__all__ = ["OpenAIRanker"]

logger = logging.getLogger(__name__)

_PNG_URL = "data:image/png;base64,"
_INSTALL = "pip install 'rar-mmdet[openai]'"
_PORTS = {"http": 80, "https": 443}
_LEAST_REST = 1e-7  # of probability: what float32 cannot tell from 1
_LETTER_TOKENS = 64  # for a letter as text: models like to write a sentence around it
_LEAST_TOKENS = 256  # for a list as text; a token is at least one byte, so longer lists get one for each byte
_MOST_PROBES = 12  # requests that a server may refuse for another field each
# How the special tokens of all common chat templates begin: <|im_end|>, </s>, <image>, <start_of_turn>, [INST], ...
_MARKUP = (*(f"<{char}" for char in f"|\uff5c/_{string.ascii_letters}"), "[INST", "[/", "[IMG", "[SYSTEM", "[gMASK")
_ONE_ORDER = Letter(num_shifts=1)


class OpenAIRanker(AskingRanker):
    """Asks a server over HTTP. Crops are sent from memory; the key comes from the environment and is never logged.

    `Likelihood` is not offered: servers score a given continuation only by prefilling the whole prompt once per
    candidate (vLLM switches its prefix cache off for `prompt_logprobs`). `Letter` costs one token per order.

    Args:
        base_url: as `http://host:8000/v1`. HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the environment are honoured.
        model: the name the server serves it under.
        ask: a `Letter`, `YesNo` or `Generate`, or its short form; 'letter' is here one order of the candidates, for
            every further one is a request.
        limits, cache: see `AskingRanker`.
        image_size: side in pixels of the crops sent.
        timeout: seconds one request may take.
        max_retries: attempts after the first, each after a pause of 0.5 s growing to 8 s, or of the server's
            Retry-After up to 300 s. Only what may pass is tried again: broken connections and replies, 408, 409, 425,
            429 and 5xx. A request refused for itself (400, 413, 422, ...) is a region without an answer.
        extra_body: more fields of every request, such as {'chat_template_kwargs': {'enable_thinking': False}}; `None`
            for a field leaves it out. Fields of ours that the server refuses are left out, or renamed, without that.
        server: key, concurrency, patience; a `ServerSettings` or a dict of its settings.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        ask: Ask | Mapping[str, Any] | str = _ONE_ORDER,
        limits: Limits | Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        image_size: int = 336,
        timeout: float = 90.0,
        max_retries: int = 5,
        extra_body: Mapping[str, Any] | None = None,
        server: ServerSettings | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(ask=_ONE_ORDER if ask == "letter" else ask, limits=limits, cache=cache)
        if self.ask.wants == "names":
            raise ConfigError(
                "OpenAIRanker cannot ask='likelihood': a server would prefill the prompt once per candidate. Use "
                "ask='letter' (one token) or 'yesno', or TransformersRanker for likelihoods"
            )
        if timeout <= 0 or max_retries < 0:
            raise ConfigError(f"need timeout > 0 and max_retries >= 0, got {timeout} and {max_retries}")
        expect_count("image_size", image_size)
        if "messages" in (extra_body or {}):
            raise ConfigError("extra_body holds further fields of a request; 'messages' are the ranker's own")
        self._address = _address(base_url)
        self.base_url, self.model, self.crop_size = base_url, model, image_size
        self.timeout, self.max_retries, self.extra_body = timeout, max_retries, dict(extra_body or {})
        self.server = as_options(ServerSettings, server, "server")
        self._client: Client | None = None
        self._dialect = Dialect()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_client": None}

    def missing_assets(self) -> list[str]:
        """What keeps this ranker from running: the client package, the key, or the server."""
        lines = []
        try:
            import openai  # noqa: F401
        except ImportError:
            lines.append(f"OpenAIRanker needs the package openai; run `{_INSTALL}`")
        key = self.server.api_key_env
        if key is not None and not os.environ.get(key):
            lines.append(f"OpenAIRanker: the environment variable {key} is not set; export the key in it")
        if self.server.start_timeout == 0:
            lines += self._out_of_reach()
        return lines

    def _out_of_reach(self) -> list[str]:
        """A line if nobody listens: at the server's address, or at its proxy's."""
        proxy = proxy_of(self.base_url)
        address = self._address
        if proxy is not None:
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            address = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 1080)
        try:
            socket.create_connection(address, timeout=5).close()
        except (OSError, UnicodeError) as error:  # the latter: no name that DNS could hold
            url = without_user(self.base_url)
            if proxy is not None:
                return [
                    f"OpenAIRanker: the proxy {without_user(proxy)} for {url} cannot be reached ({error}); correct "
                    "HTTP_PROXY and HTTPS_PROXY, or name the server's host in NO_PROXY"
                ]
            return [
                f"OpenAIRanker: no server at {url} ({error}); start one, e.g. `vllm serve {self.model} --port "
                f"{self._address[1]}`, or give server=dict(start_timeout=...) to wait for it"
            ]
        return []

    def special_tokens(self) -> Sequence[str]:
        """How special tokens begin: which of them a server's model obeys is not known here, so all are broken."""
        return _MARKUP

    def identity(self) -> Mapping[str, Any]:
        """What is known of a model behind a server: where it is, its name and revision, and what shapes its answers."""
        return {
            "id": f"server:{self.model}",
            "base_url": without_user(self.base_url).rstrip("/"),
            "revision": self.server.revision,
            "extra_body": self.extra_body,
        }

    @property
    def client(self) -> Client:
        """The connection; opened, and the server's abilities probed, on first use.

        Raises:
            MissingAssetError: the client package or the key is missing.
            RankerError: the server does not answer, or refuses the key or the model.
        """
        with self._lock:
            if self._client is None or self._client.process != os.getpid():  # a fork's parent keeps its own
                waiting = time.monotonic() + self.server.start_timeout
                if missing := self.missing_assets():
                    raise MissingAssetError("; ".join(missing))
                client = Client(
                    base_url=self.base_url,
                    model=self.model,
                    key=os.environ.get(self.server.api_key_env or "", ""),
                    settings=self.server,
                    timeout=self.timeout,
                    max_retries=self.max_retries,
                )
                client.wait_until_up(waiting)
                self._dialect = self._learn(client)
                self._client = client
            return self._client

    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """All at once, `max_concurrency` requests on the way; answers are kept as they come."""
        client, dialect = self.client, self._dialect

        def requests(question: Question) -> list[Request]:
            image, texts = _png_base64(question.crop), self.ask.texts(question)
            texts = texts if self._gives_labels(dialect) else texts[:1]  # a text is read in the first order
            return [self._body(image, self._request(dialect, text, question.candidates)) for text in texts]

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
        elif self.ask.wants == "labels":
            tokens = _LETTER_TOKENS
            if dialect.grammar:
                wanted = {"structured_outputs": {"choice": list(LETTERS[:k])}}  # vLLM's field
        else:
            tokens = self.ask.max_new_tokens or max(_LEAST_TOKENS, len(str(list(names)).encode()))
            if dialect.grammar:
                wanted = {"response_format": _list_schema(k)}
        # The image first and the candidates last: servers reuse what prompts begin with.
        content = [{"type": "image_url", "image_url": {"url": _PNG_URL}}, {"type": "text", "text": text}]
        request = {
            "messages": [{"role": "user", "content": content}],
            **wanted,
        }  # messages before all else, see `_body`
        request |= dialect.fields(self.model, tokens, self.extra_body)
        if request.get("logprobs") is None:
            request.pop("top_logprobs", None)
        return {name: value for name, value in request.items() if value is not None}

    @staticmethod
    def _body(image: bytes, request: Mapping[str, Any]) -> Request:
        """The JSON of a request around a PNG in base64.

        The picture is put in afterwards: its 200 kB are plain ASCII, and a JSON encoder would look at each of them.
        """
        # The first one is the picture's, whatever texts behind it say.
        before, url, after = json.dumps(request).encode().partition(_PNG_URL.encode())
        return b"".join((before, url, image, after))

    def _learn(self, client: Client) -> Dialect:
        """Ask, until the server takes it, what it can do; what it cannot is said once."""
        learned: list[str] = []
        dialect, reply = self._settle(client, Dialect(), learned)
        if self._gives_labels(dialect) and len(reply.top_log_probs or ()) < 2:  # of one label nothing can be ranked
            learned.append("log-probabilities are not given")
            dialect, reply = self._settle(client, dialect.without_log_probs(), learned)
        if self.ask.wants == "labels" and dialect.top_log_probs == 0:
            if len(self.ask.texts(Question(torch.empty(0), ("a", "b")))) > 1 and self.ask.name == "yesno":
                raise RankerError(
                    f"{client.base_url} gives no log-probabilities for {self.model}, which ask='yesno' needs; use "
                    "ask='letter' or 'generate'"
                )
            logger.warning("%s gives no log-probabilities; letters are read as text", client.base_url)
        elif learned:
            logger.warning("%s does not take every field of a request: %s", client.base_url, "; ".join(learned))
        return dialect

    def _settle(self, client: Client, dialect: Dialect, learned: list[str]) -> tuple[Dialect, Reply]:
        """The first way to put a request that the server takes, and its reply."""
        image = _png_base64(torch.full((3, 32, 32), 127, dtype=torch.uint8))
        names = ("yes", "no")

        def put(tried: Dialect) -> tuple[Reply | Refusal, dict[str, Any]]:
            request = self._request(tried, "Answer with the letter A.", names)
            return client.probe(self._body(image, request)), request

        said, request = put(dialect)
        for _ in range(_MOST_PROBES):
            if isinstance(said, Reply):
                return dialect, said
            step = dialect.after(said.reason, request)
            if step is None:
                break
            dialect = step[0]
            learned.append(step[1])
            said, request = put(dialect)
        if isinstance(said, Refusal):
            for tried, told in dialect.suspects(request):
                again, _ = put(tried)
                if isinstance(again, Reply):
                    learned.append(told)
                    return tried, again
        reason = said.reason if isinstance(said, Refusal) else ""
        named = [name for name in self.extra_body if name in reason]
        mend = f". To leave that field out: extra_body={{{named[0]!r}: None}}" if named else client.other_models()
        raise RankerError(f"{client.base_url} rejects a plain request: {reason}{mend}")

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


def _address(base_url: str) -> tuple[str, int]:
    """Host and port of a server."""
    with suppress(KeyError, ValueError):
        url = urlsplit(base_url)
        port = url.port or _PORTS[url.scheme]
        if url.hostname:
            return url.hostname, port
    raise ConfigError(f"base_url must look like http://host:8000/v1, got {base_url!r}")


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


def _list_schema(k: int) -> dict[str, Any]:
    """A JSON list of K texts. Which texts is left to the parser: grammars do not enforce 'each of these once'."""
    schema = {"type": "array", "items": {"type": "string"}, "minItems": k, "maxItems": k}
    return {"type": "json_schema", "json_schema": {"name": "ranking", "schema": schema}}


def _png_base64(crop: Tensor) -> bytes:
    """(3, H, W) uint8 -> PNG in base64, stored rather than compressed: 0.3 ms instead of 11 ms at 224 px.

    For 40 % more bytes. Encoding would otherwise be what limits the rate of a fast server; Pillow spends its time
    choosing row filters. Every further copy of this size costs as much again, hence the single join.
    """
    _, height, width = crop.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each row begins with its filter: none
    pixels = rows[:, 1:].reshape(height, width, 3)  # a view
    for channel in range(3):
        pixels[..., channel] = crop[channel].numpy()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 0)), (b"IEND", b""))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))]
    return base64.b64encode(b"".join(parts))
