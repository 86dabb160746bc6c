"""The wire to an OpenAI-compatible server: bounded concurrency, retries, and failures told apart."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rar_mmdet.errors import RankerError

__all__ = ["Client", "Reply", "Request"]

logger = logging.getLogger(__name__)

Request = dict[str, Any]  # the JSON body of a chat completion
_GIVE_UP_AFTER = 16  # failures in a row, each after all its retries: the server is gone
_GATHER_SECONDS = 0.02  # answers that come within it are handed on, and kept, together
_PAUSE_BETWEEN_LOOKS = 0.5  # seconds, while waiting for a server to start


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
        max_retries: further attempts after a failure that may pass.
    """

    def __init__(self, *, base_url: str, key: str, max_concurrency: int, timeout: float, max_retries: int) -> None:
        import openai

        self._openai = openai
        self.base_url, self._key, self._max_retries = base_url, key, max_retries
        # The client retries by itself: 408, 409, 429, 5xx and broken connections, honouring Retry-After.
        self._api = openai.AsyncOpenAI(
            base_url=base_url, api_key=key or "none", timeout=timeout, max_retries=max_retries
        )
        # One INFO line per request would bury everything else in the log of a run.
        for name in ("httpx", "httpx2"):
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(logging.WARNING)
        self._max_concurrency = max_concurrency
        self._failed_in_a_row = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="rar_mmdet-openai", daemon=True).start()

    def wait_until_up(self, deadline: float) -> None:
        """Return once the server lists its models; look again until `deadline` (of `time.monotonic`).

        Raises:
            RankerError: it is not there by then, or refuses the key.
        """
        quick = self._api.with_options(max_retries=0, timeout=10.0)

        async def look() -> None:
            await quick.models.list()

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
            return asyncio.run_coroutine_threadsafe(self._complete(request), self._loop).result()
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

        async def work() -> None:
            for index, job in waiting:
                results.put((index, await self._do(job)))

        await asyncio.gather(*(work() for _ in range(min(self._max_concurrency, len(jobs)))))

    async def _do(self, job: Callable[[], list[Request]]) -> list[Reply] | BaseException | None:
        openai = self._openai
        try:
            replies = [await self._complete(request) for request in job()]
        except (openai.RateLimitError, openai.InternalServerError, openai.ConflictError) as error:
            return self._failed(error)
        except openai.APIStatusError as error:
            return RankerError(self._say("refuses a request", error))
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

    async def _complete(self, request: Request) -> Reply:
        """One completion; malformed replies are asked for again like broken connections."""
        for attempt in range(self._max_retries + 1):
            try:
                # The plain call, not `chat.completions.create`: that one re-checks request and reply field by field,
                # which costs more than everything else and would bound the rate at a few hundred a second.
                return _read(await self._api.post("/chat/completions", body=request, cast_to=object))
            except (_MalformedReplyError, ValueError, self._openai.APIResponseValidationError) as error:
                if attempt == self._max_retries:
                    raise _MalformedReplyError(str(error)) from error
                await asyncio.sleep(min(0.1 * 2**attempt, 5.0))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _say(self, what: str, error: Exception) -> str:
        text = f"{self.base_url} {what}: {type(error).__name__}: {str(error)[:300]}"
        return text.replace(self._key, "<key>") if self._key else text


def _read(completion: Any) -> Reply:
    """The one choice of a completion, whatever the server really sent."""
    try:
        (choice,) = completion["choices"]
        text = choice["message"]["content"] or ""
        listed = (choice.get("logprobs") or {}).get("content") or []
        top = [(str(e["token"]), float(e["logprob"])) for e in (listed[0]["top_logprobs"] or [] if listed else [])]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _MalformedReplyError(f"expected one choice with a message, got {str(completion)[:200]}") from error
    return Reply(str(text), top or None)
