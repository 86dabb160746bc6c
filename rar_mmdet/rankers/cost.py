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
        self._whole_budget = budget
        self.requests = self.input_tokens = self.output_tokens = 0
        self._dearest, self._reserved = 0.0, 0
        self.probing = True  # until crops are sent
        self._changed = threading.Condition()

    def share(self, processes: int) -> None:
        """Leave to this one of several processes, which count for themselves, its share of the budget."""
        if self._whole_budget is not None:
            self.budget = self._whole_budget / processes

    @property
    def spent(self) -> float:
        """Money so far."""
        return (self.input_tokens * self.input_price + self.output_tokens * self.output_price) / 1e6

    def reserve(self, requests: int) -> bool:
        """Whether so many requests may begin: each may cost what the dearest so far did.

        The first ones about a crop go alone, and others wait for them: before that it is not known what one costs. What
        would fit but for others on the way waits until these have ended: till then what is paid for counts twice.
        """
        if self.budget is None:
            return True
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    not self._reserved
                    or (not self.probing and (self._fit(requests) or not self._fit(requests - self._reserved)))
                )
            )
            if not self._fit(requests):
                return False
            self._reserved += requests
            return True

    def fits(self) -> bool:
        """Whether a request that was reserved may be tried again, after an answer that was paid for and is no use."""
        with self._changed:
            return self._fit(0)

    def _fit(self, more: int) -> bool:
        """Whether the budget has room for what is reserved and so many requests more."""
        each = self._dearest * (_PROBE_MARGIN if self.probing else 1.0)
        return self.budget is None or self.spent + (self._reserved + more) * each <= self.budget

    def free(self, requests: int) -> None:
        """So many requests that were reserved have ended."""
        if self.budget is None:
            return
        with self._changed:
            self._reserved -= requests
            self._changed.notify_all()

    def settle(self, body: str, probe: bool = False) -> None:
        """Count a reply by its `usage`; one without counts nothing."""
        try:
            usage = json.loads(body).get("usage") or {}
            read, written = _tokens(usage, _INPUT), _tokens(usage, _OUTPUT)
        except (ValueError, AttributeError, RecursionError):
            return
        with self._changed:
            before = self.spent
            self.requests += 1
            self.input_tokens += read
            self.output_tokens += written
            cost = self.spent - before
            if not probe and self.probing:
                self.probing, self._dearest = False, 0.0
                self._changed.notify_all()
            self._dearest = max(self._dearest, cost)
            step = self.budget / _TOLD_SHARES if self.budget else None
            if step and self.spent // step > before // step:
                logger.warning("%s", self.told())

    def told(self) -> str:
        """What was spent so far."""
        of = "" if self.budget is None else f" of a budget of {self.budget:g}"
        return f"spent {self.spent:.4g}{of} on {self.requests:,} requests with {self.input_tokens:,} input tokens"

    def outlook(self) -> str:
        """What questions will cost, as far as is known by the first ones."""
        tokens = (self.input_tokens + self.output_tokens) / max(self.requests, 1)
        each = self.spent / max(self.requests, 1)
        lasts = "" if self.budget is None or not each else f", and the budget lasts for about {self.budget / each:,.0f}"
        return f"about {tokens:,.0f} tokens a question, {1e3 * each:.4g} for 1,000 of them{lasts}"

    def report(self) -> dict[str, Any]:
        """For the report of a run (JSON types)."""
        names = ("requests", "input_tokens", "output_tokens")
        return {"spent": round(self.spent, 6), **{name: getattr(self, name) for name in names}}


def _tokens(usage: Any, names: tuple[str, ...]) -> int:
    return next((int(usage[name]) for name in names if usage.get(name) is not None), 0)
