"""Which fields of a request a server takes: all of them at first, fewer as it refuses some.

Servers that call themselves OpenAI-compatible differ: in the name of the token limit, in how many log-probabilities
they list, in whether they take a seed. What a refusal says is used; where it says nothing, fields are tried out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["CHOICES", "QUIET", "Dialect"]

# How servers are told that a reply must be one of some words, each by the field of that server's own documents.
CHOICES: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "vLLM": lambda words: {"structured_outputs": {"choice": list(words)}},
    "SGLang": lambda words: {"regex": f"({'|'.join(words)})"},
    "llama.cpp": lambda words: {"grammar": "root ::= " + " | ".join(f'"{word}"' for word in words)},
    "LMDeploy": lambda words: {"response_format": {"type": "regex_schema", "regex_schema": "|".join(words)}},
    "Ollama": lambda words: {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "choice", "schema": {"type": "string", "enum": list(words)}},
        }
    },
}
# How a model that thinks first is told not to: by its chat template, under the names that templates have for it, or by
# the field of hosted services and Ollama.
QUIET: tuple[dict[str, Any], ...] = (
    {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
    {"reasoning_effort": "none"},
)

_MOST_LOG_PROBS = 20  # what OpenAI's interface allows, and vLLM's default limit
_LEAST_LOG_PROBS = 2  # of one label nothing can be ranked
_LIMIT_WORDS = re.compile(
    r"more than|greater|less than|at most|maximum|max|exceed|between|limit|too (?:many|large|high)|range"
)
_LEAST = re.compile(
    r"(?:at least|minimum(?: value)?(?: is| of)?|greater than or equal to|>=|below(?: the)? minimum\D*)\s*(\d+)"
)
_GRAMMAR_WORDS = ("response_format", "structured_outputs", "json_schema", "guided", "grammar", "schema")
_TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
_TOKEN_NAMES = (*_TOKEN_FIELDS, "max_output_tokens")  # in refusals
_OPTIONAL = ("seed", "temperature")


@dataclass(frozen=True)
class Dialect:
    """The fields of a request.

    Args:
        token_field: how the limit of a reply's tokens is called; `None` leaves it out.
        least_tokens: the smallest limit.
        top_log_probs: how many log-probabilities of the first token are asked for; 0: none.
        grammar: whether a list's form is prescribed.
        choice: whose way to prescribe one of some words is kept to, of `CHOICES`; `None`: nobody's.
        quiet: which of `QUIET` is sent; `None`: none of them.
        left_out: other fields that are not sent.
    """

    token_field: str | None = "max_tokens"
    least_tokens: int = 1
    top_log_probs: int = _MOST_LOG_PROBS
    grammar: bool = True
    choice: str | None = None
    quiet: int | None = None
    left_out: frozenset[str] = frozenset()

    def fields(self, model: str, tokens: int, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The fields beside the messages and what is asked for; `extra` adds and replaces, `None` leaves out."""
        fields: dict[str, Any] = {"model": model, "temperature": 0.0, "seed": 0}
        if self.token_field is not None and not any(extra.get(name) is not None for name in _TOKEN_FIELDS):
            fields[self.token_field] = max(tokens, self.least_tokens)
        fields = {name: value for name, value in fields.items() if name not in self.left_out}
        return fields | ({} if self.quiet is None else QUIET[self.quiet]) | dict(extra)

    def without_log_probs(self) -> Dialect:
        """The same, but letters are read as text, whose form is not prescribed yet."""
        return replace(self, top_log_probs=0)

    def without_grammar(self) -> Dialect:
        """The same, but the form of a reply is not prescribed."""
        return replace(self, grammar=False)

    def after(self, refusal: str, sent: Collection[str]) -> tuple[Dialect, str] | None:
        """What to try next by what a refusal says, and that in words; `None` if it names no field that can go.

        Args:
            refusal: the server's reason.
            sent: the fields of the refused request.
        """
        text = refusal.lower()
        if any(_names(text, name) for name in _TOKEN_NAMES) and self.token_field in sent:
            return self._after_tokens(text)
        if "logprob" in text and self.top_log_probs and "logprobs" in sent:
            return self._after_log_probs(text)
        if any(word in text for word in _GRAMMAR_WORDS) and "response_format" in sent:
            return replace(self, grammar=False), "the form of the reply cannot be prescribed"
        for name in _OPTIONAL:
            if _names(text, name) and name in sent:
                return self._without(name)
        return None

    def suspects(self, sent: Collection[str]) -> Iterator[tuple[Dialect, str]]:
        """What may be at fault when a refusal names nothing, each by itself, and at last all of it."""
        plain, what = self, []
        tries = [self._without(name) for name in _OPTIONAL if name in sent]
        if self.token_field in sent:
            tries.append((replace(self, token_field=_other(self.token_field)), f"{self.token_field} is not taken"))
        if "logprobs" in sent:
            smaller = 5
            tries.append((replace(self, top_log_probs=smaller), f"top_logprobs is {smaller}"))
        for tried, told in tries:
            yield tried, told
            what.append(told)
        plain = replace(
            self, left_out=self.left_out | {name for name in _OPTIONAL if name in sent}, token_field=None, grammar=False
        )
        if "logprobs" in sent:
            yield self.without_log_probs(), "log-probabilities are not given"
            yield plain, "the token limit, seed and temperature are left out"
        yield plain.without_log_probs(), "everything that can be left out is"

    def _without(self, name: str) -> tuple[Dialect, str]:
        return replace(self, left_out=self.left_out | {name}), f"the field {name!r} is left out"

    def _after_tokens(self, text: str) -> tuple[Dialect, str] | None:
        least = [int(number) for number in _LEAST.findall(text) if int(number) > self.least_tokens]
        if least:
            return replace(self, least_tokens=max(least)), f"replies get at least {max(least)} tokens"
        other = _other(self.token_field)
        said = f"{self.token_field!r} is " + (f"sent as {other!r}" if other else "left out")
        return replace(self, token_field=other), said

    def _after_log_probs(self, text: str) -> tuple[Dialect, str]:
        allowed = [int(number) for number in re.findall(r"\d+", text)]
        allowed = [number for number in allowed if _LEAST_LOG_PROBS <= number < self.top_log_probs]
        if allowed:
            count = max(allowed)
        elif _LIMIT_WORDS.search(text):
            count = self.top_log_probs // 2
        else:
            count = 0
        if count < _LEAST_LOG_PROBS:
            return self.without_log_probs(), "log-probabilities are not given"
        return replace(self, top_log_probs=count), f"{count} log-probabilities are asked for"


def _other(token_field: str | None) -> str | None:
    return _TOKEN_FIELDS[1] if token_field == _TOKEN_FIELDS[0] else None


def _names(text: str, name: str) -> bool:
    """Whether a text names a field, and not one whose name it is part of."""
    return re.search(rf"(?<![a-z_]){name}(?![a-z_])", text) is not None
