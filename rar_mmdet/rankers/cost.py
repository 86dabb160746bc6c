"""What a hosted model costs: tokens by the service's own count, money by the price given, and when to stop."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

__all__ = ["Meter"]

logger = logging.getLogger(__name__)

_INPUT = ("prompt_tokens", "input_tokens")  # chat completions; decisions
_OUTPUT = ("completion_tokens", "output_tokens")
_PROBE_MARGIN = 2.0  # a crop's question is longer than the first one, which shows two options; ours
_TOLD_SHARES = 10  # of the budget, at which the log says what was spent


class Meter:
    """Counts tokens and money; several threads may use one.

    Args:
        input_price, output_price: money per million tokens.
        budget: money; a request that might not fit any more is not begun. `None`: no limit.
    """

    def __init__(self, input_price: float, output_price: float = 0.0, budget: float | None = None) -> None:
        self.input_price, self.output_price, self.budget = input_price, output_price, budget
        self.requests = self.input_tokens = self.output_tokens = 0
        self._dearest, self._reserved = 0.0, 0
        self.probing = True  # until crops are sent
        self.stopped = False
        self._lock = threading.Lock()

    @property
    def spent(self) -> float:
        """Money so far."""
        return (self.input_tokens * self.input_price + self.output_tokens * self.output_price) / 1e6

    def reserve(self, requests: int) -> bool:
        """Whether so many requests may begin: each may cost what the dearest so far did."""
        with self._lock:
            each = self._dearest * (_PROBE_MARGIN if self.probing else 1.0)
            if self.budget is not None and self.spent + (self._reserved + requests) * each > self.budget:
                self.stopped = True
                return False
            self._reserved += requests
            return True

    def free(self, requests: int) -> None:
        """So many requests that were reserved have ended."""
        with self._lock:
            self._reserved -= requests

    def settle(self, body: str, probe: bool = False) -> None:
        """Count a reply by its `usage`; one without counts nothing."""
        try:
            usage = json.loads(body).get("usage") or {}
            read, written = _tokens(usage, _INPUT), _tokens(usage, _OUTPUT)
        except (ValueError, AttributeError, RecursionError):
            return
        with self._lock:
            before = self.spent
            self.requests += 1
            self.input_tokens += read
            self.output_tokens += written
            cost = self.spent - before
            if not probe and self.probing:
                self.probing, self._dearest = False, 0.0
            self._dearest = max(self._dearest, cost)
            step = self.budget / _TOLD_SHARES if self.budget else None
            if step and self.spent // step > before // step:
                logger.warning("%s", self.told())

    def told(self) -> str:
        """What was spent so far."""
        of = "" if self.budget is None else f" of a budget of {self.budget:g}"
        return f"spent {self.spent:.4g}{of} on {self.requests:,} requests with {self.input_tokens:,} input tokens"

    def report(self) -> dict[str, Any]:
        """For the report of a run (JSON types)."""
        names = ("requests", "input_tokens", "output_tokens")
        return {"spent": round(self.spent, 6), **{name: getattr(self, name) for name in names}}


def _tokens(usage: Any, names: tuple[str, ...]) -> int:
    return next((int(usage[name]) for name in names if usage.get(name) is not None), 0)
