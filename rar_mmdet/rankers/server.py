"""The wire to a model's servers: bounded concurrency, least in flight, retries, redirects, failures told apart."""

from __future__ import annotations

import difflib
import json
import logging
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from rar_mmdet.errors import ConfigError, RankerError
from rar_mmdet.rankers.completions import MalformedReplyError, reason_of
from rar_mmdet.rankers.connections import BrokenError, Connections, StatusError, moved, without_user
from rar_mmdet.rankers.cost import Meter

__all__ = ["Client", "Refusal", "Request", "ServerSettings"]

logger = logging.getLogger(__name__)

Request = bytes  # a JSON body
_GIVE_UP_AFTER = 16  # failures in a row, each after all its retries: the servers are gone
_DEAD_AFTER = 3  # broken connections in a row to one of several servers: it is asked no more
_GATHER_SECONDS = 0.02  # answers that come within it are handed on, and kept, together
_MODELS_TIMEOUT = 30.0  # seconds for the list of models
_PAUSE_BETWEEN_LOOKS = 0.5  # seconds, while waiting for a server to start
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before another attempt; each pause is twice the one before
_LONG_PAUSE = 4.0  # seconds from which a pause is worth a line in the log
_LONGEST_RETRY_AFTER = 300.0  # seconds; a server that names a later time is asked again by then all the same
_PASSING = (408, 409, 425, 429)  # the 4xx that another attempt may find gone; all others are about the request
_REFUSING = (400, 413, 415, 422, 501)  # what servers answer to a field they do not take
_REDIRECTS = (301, 302, 307, 308)
_LASTING = (401, 403, 404, 405, *_REDIRECTS)  # about the key, the model or the address: true of all requests
_MOST_REDIRECTS = 3
_REASON_CHARS = 300
_MODELS_TO_SHOW = 10
_T = TypeVar("_T")  # what a reply is read as


@dataclass(frozen=True)
class ServerSettings:
    """How a server is spoken to.

    Args:
        api_key_env: environment variable with the key; `None` for servers without one.
        max_concurrency: requests on the way at once, to all servers together.
        start_timeout: seconds to wait for a server that is still starting; 0: it has to be there.
        revision: any text that tells this model from another of the same name; part of the key of kept answers.
        price_per_million: of input tokens, in any currency; then tokens and money are counted, by the `usage` that the
            server reports, and told. `None`: nothing is counted.
        output_price_per_million: of output tokens.
        budget: money that may be spent; a run stops before it is, with an error, and all answers so far are kept.
    """

    api_key_env: str | None = None
    max_concurrency: int = 64
    start_timeout: float = 0.0
    revision: str | None = None
    price_per_million: float | None = None
    output_price_per_million: float = 0.0
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and (self.price_per_million is None or self.budget <= 0):
            raise ConfigError(
                f"budget={self.budget} must be above 0 and needs price_per_million, the price of a million input "
                "tokens, to be kept"
            )
        if (self.price_per_million or 0.0) < 0 or self.output_price_per_million < 0:
            raise ConfigError(
                f"prices must be at least 0, got {self.price_per_million} and {self.output_price_per_million}"
            )
        if self.max_concurrency < 1 or self.start_timeout < 0:
            raise ConfigError(
                f"need max_concurrency >= 1 and start_timeout >= 0, got {self.max_concurrency} and {self.start_timeout}"
            )


@dataclass(frozen=True)
class Refusal:
    """A request that the server does not take, and why."""

    reason: str


class _BudgetSpentError(Exception):
    """A job that was not begun."""


class _FailedError(Exception):
    """A request that failed, and on which server."""

    def __init__(self, node: _Node, error: Exception) -> None:
        super().__init__(str(error))
        self.node, self.error = node, error


@dataclass(eq=False)
class _Node:
    """One of the servers: the way to it, where it takes requests, and how it does."""

    url: str  # without user and password
    connections: Connections
    path: str
    in_flight: int = 0
    broken_in_a_row: int = 0

    @property
    def is_dead(self) -> bool:
        return self.broken_in_a_row >= _DEAD_AFTER


class _Call(Generic[_T]):
    """One call of `Client.run`: what came of its jobs so far, and whether its caller still waits."""

    def __init__(self) -> None:
        self.results: queue.SimpleQueue[tuple[int, list[_T] | BaseException | None]] = queue.SimpleQueue()
        self.over = threading.Event()


class Client(Generic[_T]):
    """Requests to servers of one model, `max_concurrency` at a time; several threads may share one.

    Each request goes to the server with the fewest on the way. One whose connections break is left out, with a warning,
    as long as another one answers.

    Args:
        base_urls: of servers of one model.
        model: whose name requests carry, for errors.
        path: where requests go, behind each base_url.
        read: what a reply says; raises MalformedReplyError if it says nothing.
        key: may be empty.
        settings: concurrency, and the name of the key for errors.
        timeout: seconds per attempt.
        max_retries: further attempts after a failure that may pass, each after a pause: what the server's Retry-After
            says, at most 300 s, or else 0.5 s, 1 s, ... 8 s.
        meter: counts what requests cost, and says when to stop.
    """

    def __init__(
        self,
        *,
        base_urls: Sequence[str],
        model: str,
        path: str,
        read: Callable[[str], _T],
        key: str,
        settings: ServerSettings,
        timeout: float,
        max_retries: int,
        meter: Meter | None = None,
    ) -> None:
        self._read, self._model, self._key = read, model, key.strip()
        self._settings, self._max_retries, self._meter = settings, max_retries, meter
        self.process = os.getpid()  # threads do not survive a fork: in another process this client is dead
        self.nodes = [_Node(without_user(url), Connections(url, self._key, timeout), path) for url in base_urls]
        self._failed_in_a_row, self._silent_until = 0, 0.0
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._workers = 0
        weakref.finalize(self, self._tasks.put, None)

    def wait_until_up(self, deadline: float) -> None:
        """Return once every server answers at all; look again until `deadline` (of `time.monotonic`).

        Raises:
            RankerError: one is not there by then; or, of several, one serves another model.
        """
        for node in self.nodes:
            self._wait_for(node, deadline)
            if len(self.nodes) > 1 and (other := self.other_models(node)):
                raise RankerError(f"{node.url}, one of {len(self.nodes)} servers, is wrong about its model{other}")

    def _wait_for(self, node: _Node, deadline: float) -> None:
        while True:
            try:
                self._get_models(node)
                return
            except (StatusError, BrokenError) as error:
                if isinstance(error, StatusError) and error.status < 500:
                    return  # one without a model list, or that keeps it to itself, is still a server
                if time.monotonic() >= deadline:
                    raise RankerError(
                        self._say("does not answer", error, node) + "; start it, or give "
                        "server=dict(start_timeout=...) to wait for it"
                    ) from None
            time.sleep(_PAUSE_BETWEEN_LOOKS)

    def _get_models(self, node: _Node) -> str:
        return node.connections.ask("/models", timeout=_MODELS_TIMEOUT)

    def probe(self, request: Request, node: _Node | None = None) -> _T | Refusal:
        """One request, to learn whether a server, by default the first, takes its fields.

        Raises:
            RankerError: it fails for another reason.
        """
        try:
            return self._complete(request, threading.Event(), only=node or self.nodes[0])
        except _FailedError as failed:
            error, node = failed.error, failed.node
            if not isinstance(error, StatusError):
                raise RankerError(self._say("does not answer the first request", error, node)) from None
            if error.status in _REFUSING:
                return Refusal(self._reason(error))
            raise RankerError(self._say("fails the first request", error, node) + self._advice(error, node)) from None

    def fetch(self, url: str, body: dict[str, Any]) -> Any:
        """The JSON that a further address of the first server answers; `None` where it has none."""
        try:
            return json.loads(self.nodes[0].connections.ask(url, json.dumps(body).encode()))
        except (StatusError, BrokenError, ValueError):
            return None

    def run(self, jobs: Sequence[Callable[[], list[Request]]]) -> Iterator[dict[int, list[_T]]]:
        """Do all jobs; yields replies by job as they finish. Jobs that fail in passing ways never come.

        Args:
            jobs: each makes its requests when its turn comes, so that only as many crops are encoded at a time as
                there are requests on the way; and in the thread that sends them, so that all cores encode.

        Raises:
            RankerError: the servers are gone, or refuse requests, or the budget is spent. What was yielded before is
                good, and what was on the way when the budget was spent is yielded first.
        """
        call: _Call[_T] = _Call()
        self._failed_in_a_row = 0
        self._start_workers(len(jobs))
        for index, job in enumerate(jobs):
            self._tasks.put(lambda index=index, job=job: self._work(call, index, job))  # type: ignore[misc]
        left, refused = len(jobs), False
        try:
            while left:
                batch = [call.results.get()]
                time.sleep(_GATHER_SECONDS)
                while not call.results.empty():
                    batch.append(call.results.get())
                left -= len(batch)
                # What came in is handed on before anything is raised: it has been paid for.
                yield {index: value for index, value in batch if isinstance(value, list)}
                for _, value in batch:
                    if isinstance(value, _BudgetSpentError):
                        refused = True
                    elif isinstance(value, BaseException):
                        raise RankerError(str(value)) from None
            if refused:
                raise self._over_budget()
        finally:
            call.over.set()

    def _start_workers(self, most: int) -> None:
        """As many as there are jobs, `max_concurrency` at most, for all calls together."""
        with self._lock:
            while self._workers < min(self._settings.max_concurrency, most):
                self._workers += 1
                threading.Thread(
                    target=_do_tasks, args=(self._tasks,), name=f"rar_mmdet-server-{self._workers}", daemon=True
                ).start()

    def _work(self, call: _Call[_T], index: int, job: Callable[[], list[Request]]) -> None:
        """Do one job, whatever becomes of it: a caller that hears nothing would wait for ever."""
        if call.over.is_set():
            return
        result: list[_T] | BaseException | None
        try:
            requests = job()
            if self._meter is None:
                result = self._do(requests, call)
            elif self._meter.reserve(len(requests)):
                try:
                    result = self._do(requests, call)
                finally:
                    self._meter.free(len(requests))
            else:
                result = _BudgetSpentError()
        except Exception as error:  # noqa: BLE001 - see above
            result = error
        call.results.put((index, result))

    def _do(self, requests: Sequence[Request], call: _Call[_T]) -> list[_T] | RankerError | None:
        try:
            replies = [self._complete(request, call.over) for request in requests]
        except _FailedError as failed:
            error, node = failed.error, failed.node
            if isinstance(error, StatusError) and error.status in _LASTING:
                return RankerError(self._say("refuses a request", error, node) + self._advice(error, node))
            return self._failed(error, node)
        self._failed_in_a_row = 0
        return replies

    def _failed(self, error: Exception, node: _Node) -> RankerError | None:
        """Count a failure that may be of this request alone; an error once it looks like the servers' end."""
        said = self._say("failed", error, node)
        with self._lock:
            self._failed_in_a_row += 1
            is_news = said not in self._warned
            self._warned.add(said)  # once, not once a request
            if self._failed_in_a_row >= _GIVE_UP_AFTER:
                reason = self._say(f"failed {_GIVE_UP_AFTER} requests in a row", error, node)
                return RankerError(f"{reason}. Answers so far are kept in the cache; start the run again to go on")
        if is_news:
            logger.warning("no answer to a request: %s", said)
        return None

    def _over_budget(self) -> RankerError:
        assert self._meter is not None
        return RankerError(
            f"the next request might not fit: {self._meter.told()}. Answers so far are kept in the cache; give more "
            "and start the run again to go on"
        )

    def _take_node(self, failed: _Node | None, only: _Node | None) -> _Node:
        """The server with the fewest requests on the way; a dead one, or one that just failed, only without another."""
        with self._lock:
            alive = [node for node in self.nodes if not node.is_dead and node is not failed]
            node = only or min(alive or self.nodes, key=lambda node: node.in_flight)
            node.in_flight += 1
            return node

    def _complete(self, request: Request, over: threading.Event, only: _Node | None = None) -> _T:
        """One reply; whatever may pass is tried again, malformed replies like broken connections.

        Args:
            request: the body.
            over: set when nobody waits for the reply any more.
            only: the server to ask; `None`: any.

        Raises:
            _FailedError: there is none.
            _BudgetSpentError: another attempt might not fit.
        """
        attempt = redirects = 0
        failed: _Node | None = None
        while True:
            node = self._take_node(failed, only)
            try:
                body = node.connections.ask(node.path, request)
                if self._meter is not None:  # also of a reply that cannot be used: it is paid for
                    self._meter.settle(body, probe=only is not None)
                said = self._read(body)
            except (StatusError, BrokenError, MalformedReplyError) as error:
                if (to := self._redirected(error)) is not None and redirects < _MOST_REDIRECTS:
                    node.path, redirects = to, redirects + 1
                    continue
                pause = self._pause(attempt, error)
                if self._has_died(node, error) and only is None:
                    pause = 0.0  # another server is asked at once, and this does not count as an attempt
                    attempt -= 1
                if pause is None:
                    raise _FailedError(node, error) from None
                if only is None and self._meter is not None and not self._meter.fits():
                    raise _BudgetSpentError from None
                if self._is_news_of(pause):
                    logger.warning("%s; trying again in %.0f s", self._say("has no answer yet", error, node), pause)
                if over.wait(pause):
                    raise _FailedError(node, error) from None
                attempt, failed = attempt + 1, node
            else:
                node.broken_in_a_row = 0
                return said
            finally:
                with self._lock:
                    node.in_flight -= 1

    def _is_news_of(self, pause: float) -> bool:
        """Whether a pause is worth a line: one for all requests that wait at a time."""
        with self._lock:
            if pause < _LONG_PAUSE or time.monotonic() < self._silent_until:
                return False
            self._silent_until = time.monotonic() + pause
            return True

    def _has_died(self, node: _Node, error: Exception) -> bool:
        """Whether, as far as is known, a server is gone that others can stand in for; said once."""
        with self._lock:
            was_dead = node.is_dead
            node.broken_in_a_row = node.broken_in_a_row + 1 if isinstance(error, BrokenError) else 0
            others = [other for other in self.nodes if not other.is_dead]
        if node.is_dead and others and not was_dead:
            logger.warning("%s; going on with %s", self._say("is gone", error, node), [other.url for other in others])
        return node.is_dead and bool(others)

    def _redirected(self, error: Exception) -> str | None:
        return moved(error) if isinstance(error, StatusError) and error.status in _REDIRECTS else None

    def _advice(self, error: StatusError, node: _Node) -> str:
        """What to do about a lasting refusal."""
        if error.status in (401, 403):
            if self._settings.api_key_env is None:
                return (
                    ". It wants a key: put it into an environment variable and name that one, "
                    "server=dict(api_key_env='MY_KEY')"
                )
            return f". Check the key in {self._settings.api_key_env} (api_key_env)"
        if error.status in _REDIRECTS:
            return f". It redirects to {error.header.get('location')!r}: give that server as base_url"
        if error.status in (404, 405):
            if known := self.other_models(node):
                return known
            if not urlsplit(node.url).path.rstrip("/").endswith("/v1"):
                return f". base_url={node.url!r} does not end in /v1, as most do"
        return ""

    def other_models(self, node: _Node | None = None) -> str:
        """What a server serves instead, if it says so and ours is not among it; to be added to an error."""
        try:
            listed = json.loads(self._get_models(node or self.nodes[0]))
            names = [str(entry["id"]) for entry in listed["data"]]
        except (StatusError, BrokenError, ValueError, KeyError, TypeError):
            return ""
        if not names or self._model in names:
            return ""
        near = difflib.get_close_matches(self._model, names, n=1)
        shown = ", ".join(names[:_MODELS_TO_SHOW]) + (", ..." if len(names) > _MODELS_TO_SHOW else "")
        meant = f"; did you mean {near[0]!r}?" if near else "."
        return f". It does not serve model={self._model!r}{meant} It serves {shown}"

    def _pause(self, attempt: int, error: Exception) -> float | None:
        """Seconds until the next attempt; `None` if there is none left, or it would fail like this one."""
        if attempt >= self._max_retries:
            return None
        if isinstance(error, StatusError):
            if error.status < 500 and error.status not in _PASSING:
                return None
            if (asked_for := _retry_after(error.header.get("retry-after", ""))) is not None:
                return asked_for
        # Spread out: requests that failed together should not come back together.
        return min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.75, 1.0)

    def _say(self, what: str, error: Exception, node: _Node) -> str:
        return f"{node.url} {what}: {self._reason(error)}"

    def _reason(self, error: Exception) -> str:
        """Why something failed, in the server's own words where it has some, and never with the key in it."""
        reason = str(error)
        if isinstance(error, StatusError):
            said = reason_of(error.body)
            reason = f"HTTP {error.status}" + (f", {said}" if said else "")
        reason = reason.replace(self._key, "<key>") if self._key else reason
        return reason[:_REASON_CHARS]


def _do_tasks(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """What a worker does until there is no client any more; between tasks it holds nothing of it."""
    while (task := tasks.get()) is not None:
        task()
        del task
    tasks.put(None)  # for the next worker


def _retry_after(header: str) -> float | None:
    """Seconds to wait by a Retry-After header (seconds or an HTTP-date, RFC 9110 10.2.3); `None` if it names none."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(seconds, _LONGEST_RETRY_AFTER) if seconds > 0 else None
