"""From prompt text to the exact tokens a chat model expects, and where continuations join them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rar_mmdet.errors import RankerLoadError

__all__ = ["Dialogue", "common_prefix", "shipped_template"]

_MARK = "§§§"  # stands for the question, then for the reply, while the template is taken apart
_LAST_CHARS = "?.:])'\"\n"  # what questions end with besides words: tokenizers may merge it into what follows
_NAMES_KEPT = 65_536
_TEMPLATES = Path(__file__).with_name("chat_templates")


class Dialogue:
    """One user turn with an image and a question, then the assistant's turn.

    Args:
        processor: of transformers.
        chat_template: Jinja text; `None` for the processor's own.
        source: what to call that template in errors.

    Raises:
        RankerLoadError: the template cannot express such a dialogue.
    """

    def __init__(self, processor: Any, chat_template: str | None, source: str = "the chat template") -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token = str(processor.image_token)
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _MARK}]}]
        reply = [*question, {"role": "assistant", "content": [{"type": "text", "text": _MARK * 2}]}]
        instead = f"Give another as `chat_template`: a Jinja file or one of {_shipped_names()}"
        render = partial(processor.apply_chat_template, tokenize=False, chat_template=chat_template)
        try:
            asked, told = render(question, add_generation_prompt=True), render(reply)
        except (TemplateError, TypeError, ValueError) as error:
            raise RankerLoadError(
                f"{source} does not take a user's turn of image and text and then an assistant's: {error}. {instead}"
            ) from error
        self._before, found, self._after = asked.partition(_MARK)
        if not found or self.image_token not in self._before:
            raise RankerLoadError(
                f"{source} must put the image, {self.image_token!r}, and then the question; it gives {asked!r}. "
                f"{instead}"
            )
        # Continuations carry their own leading space unless the turn opens with a line break: tokenizers merge a space
        # into the word behind it, and a prompt that ends in one would be tokenised in a way the model never saw.
        self._space = "" if self._after[-1:].isspace() else " "
        _, replied, behind = told.rpartition(_MARK * 2)
        self.end_ids = self._end_of_turn(behind if replied else "")
        self._border = f"{self.image_token}x{self._after}"
        self._border_ids = self.tokens(self._border)
        usual = [self.tokens(f"{self.image_token}x{char}{self._after}")[::-1] for char in _LAST_CHARS]
        self._settled = common_prefix([self._border_ids[::-1], *usual])
        self.continuation = lru_cache(maxsize=_NAMES_KEPT)(self._continuation)

    @property
    def has_doubled_bos(self) -> bool:
        """Whether template and tokenizer would both put a BOS."""
        bos = self.tokenizer.bos_token
        ids = self.tokenizer(self._before).input_ids
        return bos is not None and ids[:2] == [self.tokenizer.bos_token_id] * 2

    def text(self, question: str) -> str:
        """The whole conversation up to where the reply begins; the image is one placeholder."""
        return f"{self._before}{question}{self._after}"

    def tail(self, question: str) -> list[int]:
        """Tokens of `text(question)` behind the image."""
        behind = self._before.rpartition(self.image_token)[2]
        ids = self.tokens(f"{self.image_token}{behind}{question}{self._after}")
        image_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        return ids[len(ids) - ids[::-1].index(image_id) :]

    def tokens(self, text: str) -> list[int]:
        """Token ids without BOS or EOS."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _continuation(self, reply: str) -> tuple[int, tuple[int, ...]]:
        ids = self.tokens(f"{self._border}{self._space}{reply}")
        shared = common_prefix([ids, self._border_ids])
        return len(self._border_ids) - shared, tuple(ids[shared:])

    def continuations(self, replies: Sequence[str], end: bool) -> tuple[int, list[list[int]]]:
        """Tokens of each reply behind the prompt, with the end of the turn if `end`.

        Returns:
            how many tokens of the prompt's end to take back first (0 unless the tokenizer merges across the border:
            then those tokens are part of every continuation), and the continuations.
        """
        each = [self.continuation(reply) for reply in replies]
        back = max(b for b, _ in each)
        ids = self._border_ids
        closing = self.end_ids if end else []
        return back, [[*ids[len(ids) - back : len(ids) - b], *tokens, *closing] for b, tokens in each]

    def prompt_end(self, back: int) -> list[int]:
        """The last tokens of nearly every prompt: all that hardly a question changes, and at least `back`."""
        return self.border_end(max(back, self._settled))

    def border_end(self, count: int) -> list[int]:
        """The last `count` tokens behind a question."""
        return self._border_ids[len(self._border_ids) - count :]

    def labels(self, words: Sequence[Sequence[str]]) -> tuple[int, list[int], list[list[int]]]:
        """Labels told apart by one token.

        Args:
            words: per label, the spellings that count for it.

        Returns:
            tokens to take back from the prompt, tokens to put behind it, and per label the ids of the next token.

        Raises:
            RankerLoadError: the tokenizer does not tell the labels apart by one token.
        """
        flat = [word for spellings in words for word in spellings]
        back, tokens = self.continuations(flat, end=False)
        shared = min(common_prefix(tokens), min(len(t) for t in tokens) - 1)
        by_word = {word: t[shared] for word, t in zip(flat, tokens, strict=True)}
        groups = [{by_word[word] for word in spellings} for spellings in words]
        unique = [sorted(g - set().union(*(o for o in groups if o is not g))) for g in groups]
        if not all(unique):
            raise RankerLoadError(f"the tokenizer does not tell {words} apart by one token; use ask='likelihood'")
        return back, tokens[0][:shared], unique

    def _end_of_turn(self, behind_reply: str) -> list[int]:
        special = set(self.tokenizer.all_special_ids)
        ids = [i for i in self.tokens(behind_reply) if i in special][:1]
        if not ids and self.tokenizer.eos_token_id is not None:
            ids = [self.tokenizer.eos_token_id]
        return ids


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix."""
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def shipped_template(name: str) -> str:
    """The chat template of that name in this package.

    Raises:
        RankerLoadError: there is none.
    """
    if name not in _shipped_names():
        raise RankerLoadError(f"chat_template={name!r} is neither a file nor one of {_shipped_names()}")
    return (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def _shipped_names() -> list[str]:
    return sorted(file.stem for file in _TEMPLATES.glob("*.jinja"))
