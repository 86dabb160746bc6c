"""The wire to an OpenAI-compatible server: bounded concurrency, retries, and failures told apart."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from rar_mmdet.errors import RankerError

__all__ = ["Client", "Reply", "Request"]

logger = logging.getLogger(__name__)

Request = bytes  # the JSON body of a chat completion
_CONNECTIONS = 16  # of one client
_GIVE_UP_AFTER = 16  # failures in a row, each after all its retries: the server is gone
_GATHER_SECONDS = 0.02  # answers that come within it are handed on, and kept, together
_PAUSE_BETWEEN_LOOKS = 0.5  # seconds, while waiting for a server to start
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before another attempt; each pause is twice the one before
_LONG_PAUSE = 4.0  # seconds from which a pause is worth a line in the log
_LONGEST_RETRY_AFTER = 300.0  # seconds; a server that names a later time is asked again by then all the same
_PASSING = (408, 409, 425, 429)  # the 4xx that another attempt may find gone; all others are about the request
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1|0\.0\.0\.0")


@dataclass(frozen=True)
class Reply:
    """One completion: its text and the log-probabilities listed for its first token, if any."""

    text: str
    top_log_probs: list[tuple[str, float]] | None


class _MalformedReplyError(Exception):
    """The server answered, but not with one completion."""


class Client:
    """`AsyncOpenAI` in a thread of its own, for callers that are not asynchronous.

    Args:
        base_url: of the server.
        key: may be empty.
        max_concurrency: requests on the way at once.
        timeout: seconds per attempt.
        max_retries: further attempts after a failure that may pass, each after a pause: what the server's Retry-After
            says, at most 300 s, or else 0.5 s, 1 s, ... 8 s.
    """

    def __init__(self, *, base_url: str, key: str, max_concurrency: int, timeout: float, max_retries: int) -> None:
        import openai

        self._openai = openai
        self.base_url, self._key, self._max_retries = base_url, key, max_retries
        self.process = os.getpid()  # threads do not survive a fork: in another process this client is dead
        # Its own retries are off: two loops in one another would multiply attempts and pauses. A proxy for the way
        # out knows nothing of servers on this machine.
        through_proxy = _LOOPBACK.fullmatch(urlsplit(base_url).hostname or "") is None
        # Several, because a client looks at each of its connections whenever a request begins or ends.
        self._apis = [
            openai.AsyncOpenAI(
                base_url=base_url,
                api_key=key or "none",
                timeout=timeout,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=through_proxy),
            )
            for _ in range(-(-max_concurrency // _CONNECTIONS))
        ]
        # One INFO line per request would bury everything else in the log of a run.
        for name in ("httpx", "httpx2"):
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(logging.WARNING)
        self._max_concurrency = max_concurrency
        self._failed_in_a_row, self._silent_until = 0, 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="rar_mmdet-openai", daemon=True).start()

    def wait_until_up(self, deadline: float) -> None:
        """Return once the server lists its models; look again until `deadline` (of `time.monotonic`).

        Raises:
            RankerError: it is not there by then, or refuses the key.
        """

        async def look() -> None:
            await self._apis[0].get("/models", cast_to=str, options={"timeout": 10.0})

        while True:
            try:
                asyncio.run_coroutine_threadsafe(look(), self._loop).result()
                return
            except self._openai.NotFoundError:
                return  # a server without a model list is still a server
            except (self._openai.AuthenticationError, self._openai.PermissionDeniedError) as error:
                raise RankerError(self._say("refuses the key", error)) from None
            except (self._openai.OpenAIError, ValueError) as error:
                if time.monotonic() >= deadline:
                    raise RankerError(
                        self._say("does not answer", error) + "; start it, or give start_timeout to wait for it"
                    ) from None
            time.sleep(_PAUSE_BETWEEN_LOOKS)

    def probe(self, request: Request, required: bool = False) -> Reply | None:
        """One request; `None` if the server rejects it as such (unless `required`).

        Raises:
            RankerError: it fails for another reason.
        """
        refused = (self._openai.BadRequestError, self._openai.UnprocessableEntityError)
        try:
            return asyncio.run_coroutine_threadsafe(self._complete(request, self._apis[0]), self._loop).result()
        except refused as error:
            if required:
                raise RankerError(self._say("rejects a plain request", error)) from None
            return None
        except self._openai.APIStatusError as error:
            raise RankerError(self._say("fails the first request", error)) from None
        except (self._openai.OpenAIError, _MalformedReplyError) as error:
            raise RankerError(self._say("does not answer the first request", error)) from None

    def run(self, jobs: Sequence[Callable[[], list[Request]]]) -> Iterator[dict[int, list[Reply]]]:
        """Do all jobs; yields replies by job as they finish. Jobs that fail in passing ways never come.

        Args:
            jobs: each makes its requests when its turn comes, so images are encoded as they are needed.

        Raises:
            RankerError: the server is gone, or refuses requests. What was yielded before is good.
        """
        results: queue.Queue[tuple[int, list[Reply] | BaseException | None]] = queue.Queue()
        self._failed_in_a_row = 0
        future = asyncio.run_coroutine_threadsafe(self._run(jobs, results), self._loop)
        done = 0
        try:
            while done < len(jobs):
                batch = [results.get()]
                time.sleep(_GATHER_SECONDS)
                while not results.empty():
                    batch.append(results.get_nowait())
                done += len(batch)
                # What came in is handed on before anything is raised: it has been paid for.
                yield {index: value for index, value in batch if isinstance(value, list)}
                for _, value in batch:
                    if isinstance(value, BaseException):
                        raise RankerError(str(value)) from None
        finally:
            future.cancel()

    async def _run(
        self,
        jobs: Sequence[Callable[[], list[Request]]],
        results: queue.Queue[tuple[int, list[Reply] | BaseException | None]],
    ) -> None:
        """`max_concurrency` workers over one list of jobs, so that only as many crops are encoded at a time."""
        waiting = iter(enumerate(jobs))

        async def work(api: Any) -> None:
            for index, job in waiting:
                results.put((index, await self._do(job, api)))

        workers = min(self._max_concurrency, len(jobs))
        await asyncio.gather(*(work(self._apis[number % len(self._apis)]) for number in range(workers)))

    async def _do(self, job: Callable[[], list[Request]], api: Any) -> list[Reply] | BaseException | None:
        openai = self._openai
        try:
            replies = [await self._complete(request, api) for request in job()]
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            return RankerError(self._say("refuses a request", error))  # the key or the model: true of all requests
        except (openai.OpenAIError, _MalformedReplyError) as error:
            return self._failed(error)
        except Exception as error:  # noqa: BLE001 - a worker that dies silently would leave its caller waiting
            return error
        self._failed_in_a_row = 0
        return replies

    def _failed(self, error: Exception) -> RankerError | None:
        """Count a failure that may be of this request alone; an error once it looks like the server's end."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _GIVE_UP_AFTER:
            reason = self._say(f"failed {_GIVE_UP_AFTER} requests in a row", error)
            return RankerError(f"{reason}. Answers so far are kept in the cache; start the run again to go on")
        logger.warning("no answer to a request: %s", self._say("failed", error))
        return None

    async def _complete(self, request: Request, api: Any) -> Reply:
        """One completion; whatever may pass is tried again, malformed replies like broken connections."""
        attempt = 0
        while True:
            try:
                # The plain call, not `chat.completions.create`: that one re-checks request and reply field by field,
                # which costs more than everything else and would bound the rate at a few hundred a second.
                return _read(await api.post("/chat/completions", content=request, cast_to=str))
            except (self._openai.OpenAIError, _MalformedReplyError) as error:
                pause = self._pause(attempt, error)
                if pause is None:
                    raise
                if pause >= _LONG_PAUSE and time.monotonic() >= self._silent_until:
                    self._silent_until = time.monotonic() + pause  # one line, not one per request
                    logger.warning("%s; trying again in %.0f s", self._say("has no answer yet", error), pause)
                await asyncio.sleep(pause)
                attempt += 1

    def _pause(self, attempt: int, error: Exception) -> float | None:
        """Seconds until the next attempt; `None` if there is none left, or it would fail like this one."""
        if attempt >= self._max_retries:
            return None
        if isinstance(error, self._openai.APIStatusError):
            if 400 <= error.status_code < 500 and error.status_code not in _PASSING:
                return None
            if (asked_for := _retry_after(error.response.headers.get("retry-after", ""))) is not None:
                return asked_for
        # Spread out: requests that failed together should not come back together.
        return min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.75, 1.0)

    def _say(self, what: str, error: Exception) -> str:
        reason = str(error).replace(self._key, "<key>") if self._key else str(error)
        return f"{self.base_url} {what}: {type(error).__name__}: {reason[:300]}"


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


def _read(body: str) -> Reply:
    """The one choice of a completion, whatever the server really sent."""
    try:
        completion = json.loads(body)
        (choice,) = completion["choices"]
        text = choice["message"]["content"] or ""
        listed = (choice.get("logprobs") or {}).get("content") or []
        top = [(str(e["token"]), float(e["logprob"])) for e in (listed[0]["top_logprobs"] or [] if listed else [])]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _MalformedReplyError(f"expected one choice with a message, got {body[:200]}") from error
    return Reply(str(text), top or None)
