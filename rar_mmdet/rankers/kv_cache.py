"""The cache of keys and values under the name that the installed transformers has for it."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["cache_name", "with_cache"]


@functools.cache
def cache_name() -> str:
    """'cache' from transformers 5.24 on, 'past_key_values' before: argument of models and field of what they give."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def with_cache(cache: Any) -> dict[str, Any]:
    """The keyword argument that hands a cache to a model or to its output class."""
    return {cache_name(): cache}
