"""What servers send: completions in the forms that are about, and the reasons of refusals in any form."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["MalformedReplyError", "Reply", "read_completion", "reason_of"]

_REASON_CHARS = 300
_BODY_CHARS = 200_000  # of an error page that is looked at
_DEEPEST = 6
# Where a reason stands, the most telling first; what is no reason is left out, above all pictures that are echoed.
_TELLING = ("message", "detail", "msg", "error", "errors", "reason", "error_description", "description", "title", "raw")
_SILENT = (
    "input",
    "ctx",
    "url",
    "type",
    "object",
    "code",
    "status",
    "id",
    "request_id",
    "user_id",
    "trace",
    "instance",
)
_PICTURE = re.compile(r"(?:data:image/[a-z]+;base64,)?[A-Za-z0-9+/=]{120,}")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_HIDDEN = re.compile(r"<(script|style|title)\b.*?</\1>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAGS = re.compile(r"<[^<>]*>")


@dataclass(frozen=True)
class Reply:
    """One completion."""

    text: str
    top_log_probs: list[tuple[str, float]] | None = None  # listed for its first token, if any
    note: str | None = None  # why there is no text, or not all of it
    thinks: bool = False  # whether thoughts came first


class MalformedReplyError(Exception):
    """The server answered, but not with one completion."""


def read_completion(body: str) -> Reply:
    """The one choice of a completion, whatever the server really sent.

    Raises:
        MalformedReplyError: it is no completion; the message says what it is.
    """
    try:
        completion = json.loads(body)
        (choice,) = completion["choices"]
        message = choice.get("message")
        text = _text(choice["text"] if message is None and "text" in choice else message["content"])
        refusal = _text((message or {}).get("refusal"))
        thoughts = _text((message or {}).get("reasoning_content") or (message or {}).get("reasoning"))
        top = _top_log_probs(choice.get("logprobs"))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise MalformedReplyError(f"expected one choice with a message, got {reason_of(body) or 'nothing'}") from error
    finish = str(choice.get("finish_reason"))
    if not text.strip() and finish == "stop" and thoughts.strip():
        text = thoughts.strip().rpartition("\n")[2]  # a server that takes all of it for thoughts: the last line counts
    thinks = bool(thoughts.strip()) or text.lstrip().startswith("<think")
    return Reply(text or refusal, top, _note(text, refusal, thoughts, finish), thinks)


def _note(text: str, refusal: str, thoughts: str, finish: str) -> str | None:
    """What a user should know about a reply that is not whole."""
    if finish == "content_filter":
        return "the server's content filter stopped the reply"
    if refusal and not text:
        return f"the model refuses: {refusal[:_REASON_CHARS]!r}"
    if thoughts and not text:
        return (
            "the model thought until its tokens were used up; switch that off, as a rule by "
            "extra_body={'chat_template_kwargs': {'enable_thinking': False}}, or give more max_new_tokens"
        )
    if finish == "length" and text:
        return f"a reply was cut at the limit of its tokens; give more max_new_tokens: {text[:_REASON_CHARS]!r}"
    return None


def _text(content: Any) -> str:
    """The text of a message: a text, a list of parts, or one part; thoughts and pictures are none.

    Raises:
        TypeError: it is something else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content.encode("utf-8", "replace").decode()  # half a surrogate pair could be written nowhere
    if isinstance(content, list):
        return "".join(_text(part) for part in content)
    if isinstance(content, dict):
        if str(content.get("type")) in ("thinking", "reasoning", "image_url", "image"):
            return ""
        for key in ("text", "content", "value", "parts", "refusal"):
            if key in content:
                return _text(content[key])
        return ""
    raise TypeError(f"no text: {type(content).__name__}")


def _top_log_probs(listed: Any) -> list[tuple[str, float]] | None:
    """(token, log-probability) of the first token, in OpenAI's chat form, or as older servers give it."""
    if not isinstance(listed, dict):
        return None
    entries = listed.get("content")
    if isinstance(entries, list):
        top = entries[0].get("top_logprobs") if entries else None
    else:
        columns = listed.get("top_logprobs")  # the form of plain completions: one dict for each token
        top = columns[0] if isinstance(columns, list) and columns else None
    pairs = top.items() if isinstance(top, dict) else ((entry["token"], entry["logprob"]) for entry in top or [])
    return [(str(token), float(value)) for token, value in pairs if value is not None] or None


def reason_of(body: str) -> str:
    """What a server says in an error's body, on one line: plain text, a page, or JSON of whatever shape."""
    body = body[:_BODY_CHARS].strip()
    if body[:1] == "<":
        title = _TITLE.search(body)
        plain = " ".join(html.unescape(_TAGS.sub(" ", _HIDDEN.sub(" ", body))).split())
        texts = [" ".join(html.unescape(title.group(1)).split())] if title else []
        texts += [] if plain in texts else [plain]
    else:
        texts = list(_reasons(body, 0))
    said = "; ".join(dict.fromkeys(text for text in texts if text))
    return _PICTURE.sub("<...>", said)[: 2 * _REASON_CHARS]


def _reasons(value: Any, depth: int) -> Iterator[str]:
    """The telling texts inside a value; JSON inside a text is opened as well."""
    if depth > _DEEPEST:
        return
    if isinstance(value, str):
        text = " ".join(value.split())
        for start in (text.find("{"), text.find("[")):
            inner = _opened(text[start:]) if start >= 0 else None
            if inner:
                yield text[:start].strip(" :-'\"b")
                yield from _reasons(inner, depth + 1)
                return
        yield text
    elif isinstance(value, dict):
        place = value.get("loc")
        if isinstance(place, list):  # of pydantic: which field the message is about
            yield ".".join(map(str, place))
        told = sorted(value, key=lambda key: _TELLING.index(key) if key in _TELLING else len(_TELLING))
        for key in told:
            if str(key) not in (*_SILENT, "loc"):
                yield from (f"{key}: {text}" if key == "param" else text for text in _reasons(value[key], depth + 1))
    elif isinstance(value, list):
        for part in value[:8]:
            yield from _reasons(part, depth + 1)


def _opened(text: str) -> Any:
    """The JSON that a text begins with, if it does."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None
