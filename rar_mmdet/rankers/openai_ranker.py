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
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.errors import MissingAssetError, RankerError
from rar_mmdet.rankers.asking import AskingRanker, expect_count
from rar_mmdet.rankers.parsing import parse_letter
from rar_mmdet.rankers.prompts import LETTERS
from rar_mmdet.rankers.questions import Answer, Question
from rar_mmdet.rankers.server import Client, Reply, Request

__all__ = ["OpenAIRanker"]

logger = logging.getLogger(__name__)

_TOP_LOGPROBS = 20  # the most that OpenAI's interface allows, and vLLM's default limit
_PNG_URL = "data:image/png;base64,"
_INSTALL = "pip install 'rar-mmdet[openai]'"
_PORTS = {"http": 80, "https": 443}
_YES_NO = (("yes", "Yes", "YES"), ("no", "No", "NO"))
_LEAST_REST = 1e-7  # of probability: what float32 cannot tell from 1
# How the special tokens of all common chat templates begin: <|im_end|>, </s>, <image>, <start_of_turn>, [INST], ...
_MARKUP = (*(f"<{char}" for char in f"|\uff5c/_{string.ascii_letters}"), "[INST", "[/", "[IMG", "[SYSTEM", "[gMASK")


class OpenAIRanker(AskingRanker):
    """Asks a server over HTTP. Crops are sent from memory; the key comes from the environment and is never logged.

    'likelihood' is not offered: servers score a given continuation only by prefilling the whole prompt once per
    candidate (vLLM switches its prefix cache off for `prompt_logprobs`). 'letter' costs one token per shift.

    Args:
        base_url: as `http://host:8000/v1`.
        model: the name the server serves it under.
        ask: 'letter', 'yesno' or 'generate'.
        prompt, prompts, num_shifts, temperature, decisive_margin, max_fallback_rate, cache: see `AskingRanker`.
        revision: any text that tells this model from another of the same name; part of the key of kept answers.
        api_key_env: environment variable with the key; `None` for servers without one.
        max_concurrency: requests on the way at once.
        timeout: seconds one request may take.
        max_retries: attempts after the first, each after a pause of 0.5 s growing to 8 s, or of the server's
            Retry-After up to 300 s. Only what may pass is tried again: broken connections and replies, 408, 409, 425,
            429 and 5xx. A request refused for itself (400, 413, 422, ...) is a region without an answer.
        start_timeout: seconds to wait for a server that is still starting; 0: it has to be there.
        image_size: side in pixels of the crops sent.
        max_tokens: for 'generate'.
        extra_body: more fields of every request, such as {'chat_template_kwargs': {'enable_thinking': False}}.
    """

    # Wider than the house's eight parameters: they are the keys of a config, and grouping them would only nest it.
    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        ask: str = "letter",
        prompt: str | None = None,
        prompts: str | Path | None = None,
        num_shifts: int | None = 1,
        temperature: float = 1.0,
        decisive_margin: float | None = None,
        max_fallback_rate: float = 0.2,
        cache: str | Path | None = None,
        revision: str | None = None,
        api_key_env: str | None = None,
        max_concurrency: int = 64,
        timeout: float = 90.0,
        max_retries: int = 5,
        start_timeout: float = 0.0,
        image_size: int = 336,
        max_tokens: int = 256,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if ask == "likelihood":
            raise ValueError(
                "OpenAIRanker cannot ask='likelihood': a server would prefill the prompt once per candidate. Use "
                "ask='letter' (one token) or 'yesno', or TransformersRanker for likelihoods"
            )
        super().__init__(
            ask=ask,
            prompt=prompt,
            prompts=prompts,
            score="sum",
            pmi_weight=1.0,
            num_shifts=num_shifts,
            temperature=temperature,
            decisive_margin=decisive_margin,
            max_fallback_rate=max_fallback_rate,
            cache=cache,
        )
        if max_concurrency < 1 or timeout <= 0 or max_retries < 0:
            raise ValueError(
                f"need max_concurrency >= 1, timeout > 0 and max_retries >= 0, got {max_concurrency}, {timeout} "
                f"and {max_retries}"
            )
        expect_count("image_size", image_size)
        expect_count("max_tokens", max_tokens)
        if "messages" in (extra_body or {}):
            raise ValueError("extra_body holds further fields of a request; 'messages' are the ranker's own")
        self._address = _address(base_url)
        self.base_url, self.model, self.revision, self.api_key_env = base_url, model, revision, api_key_env
        self.max_concurrency, self.timeout, self.max_retries = max_concurrency, timeout, max_retries
        self.start_timeout, self.crop_size, self.max_tokens = start_timeout, image_size, max_tokens
        self.extra_body = dict(extra_body or {})
        self._client: Client | None = None
        self._gives_log_probs = self._takes_grammar = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def missing_assets(self) -> list[str]:
        """What keeps this ranker from running: the client package, the key, or the server."""
        lines = []
        try:
            import openai  # noqa: F401
        except ImportError:
            lines.append(f"OpenAIRanker needs the package openai; run `{_INSTALL}`")
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            lines.append(f"OpenAIRanker: the environment variable {self.api_key_env} is not set; export the key in it")
        if self.start_timeout == 0:
            try:
                socket.create_connection(self._address, timeout=5).close()
            except (OSError, UnicodeError) as error:  # the latter: no name that DNS could hold
                lines.append(
                    f"OpenAIRanker: no server at {self.base_url} ({error}); start one, e.g. "
                    f"`vllm serve {self.model} --port {self._address[1]}`, or give start_timeout to wait for it"
                )
        return lines

    def special_tokens(self) -> Sequence[str]:
        """How special tokens begin: which of them a server's model obeys is not known here, so all are broken."""
        return _MARKUP

    def load(self, device: torch.device | str | None = None) -> None:
        """Nothing to load here; the server is spoken to when the first question has no kept answer."""

    def identity(self) -> Mapping[str, Any]:
        """What is known of a model behind a server: its name and revision, and what shapes its answers."""
        return {
            "id": f"server:{self.model}",
            "revision": self.revision,
            "extra_body": self.extra_body,
            "max_tokens": self.max_tokens if self.ask == "generate" else None,
        }

    @property
    def client(self) -> Client:
        """The connection; opened, and the server's abilities probed, on first use.

        Raises:
            MissingAssetError: the client package or the key is missing.
            RankerError: the server does not answer, or refuses the key or the model.
        """
        if self._client is None or self._client.process != os.getpid():  # a fork's parent keeps its own
            waiting = time.monotonic() + self.start_timeout
            if missing := self.missing_assets():
                raise MissingAssetError("; ".join(missing))
            key = os.environ.get(self.api_key_env, "") if self.api_key_env else ""
            client = Client(
                base_url=self.base_url,
                key=key,
                max_concurrency=self.max_concurrency,
                timeout=self.timeout,
                max_retries=self.max_retries,
            )
            client.wait_until_up(waiting)
            self._probe(client)
            self._client = client
        return self._client

    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """All at once, `max_concurrency` requests on the way; answers are kept as they come."""
        client = self.client

        def requests(question: Question) -> list[Request]:
            image = _png_base64(question.crop)
            return [self._request(image, text, len(question.candidates)) for text in self._texts(question)]

        jobs = [lambda q=q: requests(q) for q in questions]
        for finished in client.run(jobs):
            answers = {i: self._read(questions[i], replies) for i, replies in finished.items()}
            yield {i: answer for i, answer in answers.items() if answer is not None}

    def _texts(self, question: Question) -> list[str]:
        names = question.candidates
        if self.ask == "yesno":
            return [self.prompt.render(names, name) for name in names]
        if self.ask == "letter" and self._gives_log_probs:
            return [self.prompt.render([names[c] for c in shift]) for shift in self.shifts(len(names))]
        return [self.prompt.render(names)]

    def _request(self, image: bytes, text: str, k: int) -> Request:
        """The JSON body around a PNG in base64.

        The picture is put in afterwards: its 200 kB are plain ASCII, and a JSON encoder would look at each of them.
        """
        # The image first and the candidates last: servers reuse what prompts begin with.
        content = [{"type": "image_url", "image_url": {"url": _PNG_URL}}, {"type": "text", "text": text}]
        request: dict[str, Any] = {
            "messages": [{"role": "user", "content": content}],  # before all else, see below
            "model": self.model,
            "temperature": 0.0,
            "seed": 0,
            "max_tokens": self.max_tokens if self.ask == "generate" else 1 if self._gives_log_probs else 8,
        }
        extra = dict(self.extra_body)
        if self.ask == "generate" and self._takes_grammar:
            request["response_format"] = _list_schema(k)
        elif self.ask != "generate" and self._gives_log_probs:
            # No grammar beside log-probabilities: whether they are masked by it differs between servers.
            request |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        elif self.ask == "letter" and self._takes_grammar:
            extra["structured_outputs"] = {"choice": list(LETTERS[:k])}  # vLLM; others ignore it or refuse the probe
        # The first one is the picture's, whatever texts behind it say.
        before, url, after = json.dumps(request | extra).encode().partition(_PNG_URL.encode())
        return b"".join((before, url, image, after))

    def _probe(self, client: Client) -> None:
        """Ask once what the server can do; a refusal of a field means it cannot."""
        image = _png_base64(torch.full((3, 32, 32), 127, dtype=torch.uint8))
        question = "Answer with the letter A."
        self._gives_log_probs, self._takes_grammar = self.ask != "generate", self.ask == "generate"
        reply = client.probe(self._request(image, question, 2))
        if self.ask == "generate":
            self._takes_grammar = reply is not None
        elif reply is None or len(reply.top_log_probs or ()) < 2:  # of one label nothing can be ranked
            self._gives_log_probs, self._takes_grammar = False, True
            if self.ask == "yesno":
                raise RankerError(
                    f"{self.base_url} gives no log-probabilities for {self.model}, which ask='yesno' needs; use "
                    "ask='letter' or 'generate'"
                )
            logger.warning("%s gives no log-probabilities; letters are read as text", self.base_url)
            reply = client.probe(self._request(image, question, 2))
            self._takes_grammar = reply is not None
        if reply is None:
            client.probe(self._request(image, question, 2), required=True)

    def _read(self, question: Question, replies: Sequence[Reply]) -> Answer | None:
        k = len(question.candidates)
        if self.ask == "generate":
            return Answer(reply=replies[0].text)
        if not self._gives_log_probs:
            chosen = parse_letter(replies[0].text, k)
            name = [] if chosen is None else [question.candidates[chosen]]
            return Answer(reply=json.dumps(name, ensure_ascii=False))
        # Letters as capitals only: ' a' is an article.
        labels = _YES_NO if self.ask == "yesno" else [(letter,) for letter in LETTERS[:k]]
        rows = [row for reply in replies if (row := _label_scores(reply, labels)) is not None]
        if len(rows) < len(replies):
            listed = [[token for token, _ in reply.top_log_probs or []] for reply in replies]
            self._show(
                f"none of {[spellings[0] for spellings in labels]} among the first tokens the server lists, "
                f"{listed}; for a model that thinks first, try "
                "extra_body={'chat_template_kwargs': {'enable_thinking': False}}"
            )
            return None
        return Answer(scores=tuple(zip(*rows, strict=True) if self.ask == "yesno" else rows))


def _address(base_url: str) -> tuple[str, int]:
    """Host and port of a server."""
    with suppress(KeyError, ValueError):
        url = urlsplit(base_url)
        port = url.port or _PORTS[url.scheme]
        if url.hostname:
            return url.hostname, port
    raise ValueError(f"base_url must look like http://host:8000/v1, got {base_url!r}")


def _label_scores(reply: Reply, labels: Sequence[Sequence[str]]) -> tuple[float, ...] | None:
    """Log-probability of each label, in any of its spellings, as the first token; `None` if none of them is listed.

    The probability of a label that is not listed is at most the lowest listed one, and at most what the listed ones
    leave of 1. It gets half of the smaller, the middle of what is possible (ours): below every listed label, however
    few the server lists.
    """
    # Some servers list -inf for tokens that are masked: as good as not listed.
    finite = [(token, log_prob) for token, log_prob in reply.top_log_probs or [] if math.isfinite(log_prob)]
    listed = [(token.strip(" \n.()\"'▁Ġ"), log_prob) for token, log_prob in finite]
    found = [[log_prob for token, log_prob in listed if token in spellings] for spellings in labels]
    if not any(found):
        return None
    rest = max(1.0 - sum(math.exp(min(log_prob, 0.0)) for _, log_prob in listed), _LEAST_REST)
    unlisted = min(math.log(rest), *(log_prob for _, log_prob in listed)) - math.log(2.0)
    return tuple(_logsumexp(values) if values else unlisted for values in found)


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
