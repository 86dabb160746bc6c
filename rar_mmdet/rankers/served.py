"""What rankers behind a server have in common: where it is, what it needs, and how crops get there."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import string
import struct
import time
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor
from torch.distributed import get_world_size, is_available, is_initialized

from rar_mmdet.errors import ConfigError, MissingAssetError, RankerError
from rar_mmdet.files.opencv import cv2
from rar_mmdet.rankers.asking import AskingRanker
from rar_mmdet.rankers.asks import expect_count
from rar_mmdet.rankers.connections import PORTS, address_of, proxy_of, without_user
from rar_mmdet.rankers.cost import Meter
from rar_mmdet.rankers.options import Limits, as_options
from rar_mmdet.rankers.questions import Ask
from rar_mmdet.rankers.server import Client, Request, ServerSettings

__all__ = ["PNG_URL", "ServedRanker", "around_picture", "picture_url"]

logger = logging.getLogger(__name__)


PNG_URL = "data:image/png;base64,"
# How the special tokens of all common chat templates begin: <|im_end|>, </s>, <image>, <start_of_turn>, [INST], ...
_MARKUP = (*(f"<{char}" for char in f"|\uff5c/_{string.ascii_letters}"), "[INST", "[/", "[IMG", "[SYSTEM", "[gMASK")


class ServedRanker(AskingRanker):
    """Asks a server over HTTP. Crops are sent from memory; the key comes from the environment and is never logged.

    Args:
        base_url: as `http://host:8000/v1`; a list of them for several servers of one model, which share the requests.
            HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the environment are honoured.
        model: the name the server serves it under.
        ask, limits, cache: see `AskingRanker`; the default way to ask is the class's own.
        image_size: side in pixels of the crops sent.
        jpeg_quality: 1 to 100: crops are sent as JPEG, at 95 an eighth of the bytes; `None`: as PNG, without loss.
        timeout: seconds one request may take.
        max_retries: attempts after the first, each after a pause of 0.5 s growing to 8 s, or of the server's
            Retry-After up to 300 s. Only what may pass is tried again: broken connections and replies, 408, 409, 425,
            429 and 5xx. A request refused for itself (400, 413, 422, ...) is a region without an answer.
        extra_body: more fields of every request; `None` for a field leaves it out.
        server: key, concurrency, patience; a `ServerSettings` or a dict of its settings.
    """

    own_fields: ClassVar[tuple[str, ...]] = ()  # of a request, which `extra_body` must not hold

    def __init__(
        self,
        *,
        base_url: str | Sequence[str],
        model: str,
        ask: Ask | Mapping[str, Any] | str | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        image_size: int = 336,
        jpeg_quality: int | None = None,
        timeout: float = 90.0,
        max_retries: int = 5,
        extra_body: Mapping[str, Any] | None = None,
        server: ServerSettings | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(ask=self.way_to_ask(ask), limits=limits, cache=cache)
        if own := [field for field in self.own_fields if field in (extra_body or {})]:
            raise ConfigError(f"extra_body holds further fields of a request; {own[0]!r} are the ranker's own")
        if timeout <= 0 or max_retries < 0:
            raise ConfigError(f"need timeout > 0 and max_retries >= 0, got {timeout} and {max_retries}")
        expect_count("image_size", image_size)
        if jpeg_quality is not None and not (isinstance(jpeg_quality, int) and 1 <= jpeg_quality <= 100):
            raise ConfigError(f"jpeg_quality must be 1 to 100, or None for PNG, got {jpeg_quality!r}")
        self.base_urls = [base_url] if isinstance(base_url, str) else list(base_url)
        if not self.base_urls or len(set(self.base_urls)) < len(self.base_urls):
            raise ConfigError(f"base_url must be an address or a list of different ones, got {base_url!r}")
        for url in self.base_urls:
            try:
                address_of(url)
            except ValueError:
                raise ConfigError(f"base_url must look like http://host:8000/v1, got {url!r}") from None
        self.model, self.crop_size, self.jpeg_quality = model, image_size, jpeg_quality
        self.timeout, self.max_retries, self.extra_body = timeout, max_retries, dict(extra_body or {})
        self.server = as_options(ServerSettings, server, "server")
        self._client: Client[Any] | None = None
        self.meter = self._new_meter()

    @staticmethod
    @abstractmethod
    def way_to_ask(ask: Ask | Mapping[str, Any] | str | None) -> Ask:
        """The way to ask that was given, by default the best for these servers.

        Raises:
            ConfigError: such servers cannot be asked that way.
        """

    @abstractmethod
    def connect(self, key: str) -> Client[Any]:
        """The connection to the server; `self.open_client` makes it."""

    @abstractmethod
    def learn(self, client: Client[Any]) -> None:
        """Find out, from a server that is up, how it wants to be asked."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_client": None, "meter": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.meter = self._new_meter()

    def _new_meter(self) -> Meter | None:
        price, settings = self.server.price_per_million, self.server
        return None if price is None else Meter(price, settings.output_price_per_million, settings.budget)

    def missing_assets(self) -> list[str]:
        """What keeps this ranker from running: the key, or the server."""
        lines = []
        key = self.server.api_key_env
        if key is not None and not os.environ.get(key):
            lines.append(f"{type(self).__name__}: the environment variable {key} is not set; export the key in it")
        if self.server.start_timeout == 0:
            lines += [line for url in self.base_urls for line in self._out_of_reach(url)]
        return lines

    def _out_of_reach(self, base_url: str) -> list[str]:
        """A line if nobody listens: at the server's address, or at its proxy's."""
        proxy = proxy_of(base_url)
        address = address_of(base_url)
        if proxy is not None:
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            address = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 1080)
        try:
            socket.create_connection(address, timeout=5).close()
        except (OSError, UnicodeError) as error:  # the latter: no name that DNS could hold
            url, name = without_user(base_url), type(self).__name__
            if proxy is not None:
                return [
                    f"{name}: the proxy {without_user(proxy)} for {url} cannot be reached ({error}); correct "
                    "HTTP_PROXY and HTTPS_PROXY, or name the server's host in NO_PROXY"
                ]
            return [
                f"{name}: no server at {url} ({error}); start one, e.g. `vllm serve {self.model} --port "
                f"{address[1]}`, or give server=dict(start_timeout=...) to wait for it"
            ]
        return []

    def special_tokens(self) -> Sequence[str]:
        """How special tokens begin: which of them a server's model obeys is not known here, so all are broken."""
        return _MARKUP

    def identity(self) -> Mapping[str, Any]:
        """What is known of a model behind a server: where it is, its name and revision, and what shapes its answers."""
        return {
            "id": f"server:{self.model}",
            "base_url": ", ".join(sorted(without_user(url).rstrip("/") for url in self.base_urls)),
            "revision": self.server.revision,
            "extra_body": self.extra_body,
            **({} if self.jpeg_quality is None else {"jpeg_quality": self.jpeg_quality}),
        }

    @property
    def client(self) -> Client[Any]:
        """The connection; opened, and the server's abilities probed, on first use.

        Raises:
            MissingAssetError: the key is missing, or nobody listens.
            RankerError: the server does not answer, or refuses the key or the model.
        """
        with self._lock:
            if self._client is None or self._client.process != os.getpid():  # a fork's parent keeps its own
                waiting = time.monotonic() + self.server.start_timeout
                if missing := self.missing_assets():
                    raise MissingAssetError("; ".join(missing))
                client = self.connect(os.environ.get(self.server.api_key_env or "", ""))
                client.wait_until_up(waiting)
                if self.meter is not None:
                    self.meter.share(get_world_size() if is_available() and is_initialized() else 1)
                self.learn(client)
                if self.meter is not None:
                    self._tell_cost(client.nodes[0].url, self.meter)
                self._client = client
            return self._client

    @staticmethod
    def _tell_cost(url: str, meter: Meter) -> None:
        """What the first questions cost, before any crop is sent.

        Raises:
            RankerError: there is a budget, and the server does not say what it takes of it.
        """
        if meter.budget is not None and not meter.input_tokens:
            raise RankerError(
                f"{url} does not report the tokens of its answers (`usage`), so budget={meter.budget:g} cannot be "
                "kept; leave the budget out, and look at the service's own account"
            )
        logger.warning("%s: photos leave this machine; %s. First questions: %s", url, meter.outlook(), meter.told())

    def estimate(self, questions: int) -> str:
        """What so many questions will cost, by what the first ones did; asks these if nothing was asked yet.

        Raises:
            ConfigError: the price is not known.
        """
        if self.meter is None:
            raise ConfigError("a cost needs server=dict(price_per_million=...), the price of a million input tokens")
        _ = self.client
        requests = max(self.meter.requests, 1)
        return (
            f"at most {questions:,} questions to the ranker, {self.meter.input_tokens * questions / requests:,.0f} "
            f"input tokens: about {self.meter.spent * questions / requests:.4g} at the prices of the config"
        )

    def open_client(self, key: str, path: str, read: Any) -> Client[Any]:
        """A client for requests to a path; see `Client`."""
        return Client(
            base_urls=self.base_urls,
            model=self.model,
            path=path,
            read=read,
            key=key,
            settings=self.server,
            timeout=self.timeout,
            max_retries=self.max_retries,
            meter=self.meter,
        )

    def report(self) -> dict[str, Any]:
        """See `AskingRanker.report`; with a price also tokens and money of this process."""
        return {**super().report(), **({"cost": self.meter.report()} if self.meter else {})}


def around_picture(url: bytes, request: Mapping[str, Any]) -> Request:
    """The JSON of a request, with the `picture_url` of a crop in place of the first `PNG_URL` in it.

    The picture is put in afterwards: its 200 kB are plain ASCII, and a JSON encoder would look at each of them.
    """
    # The first one is the picture's, whatever texts behind it say.
    before, _, after = json.dumps(request).encode().partition(PNG_URL.encode())
    return b"".join((before, url, after))


def picture_url(crop: Tensor, jpeg_quality: int | None = None) -> bytes:
    """(3, H, W) uint8 RGB as a data URL: JPEG of a quality, or PNG without loss."""
    if jpeg_quality is None:
        return PNG_URL.encode() + base64.b64encode(_png(crop))
    red, green, blue = crop.numpy()
    bgr = cv2.merge((blue, green, red))
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
    return b"data:image/jpeg;base64," + base64.b64encode(encoded.data)


def _png(crop: Tensor) -> bytes:
    """(3, H, W) uint8 -> PNG, stored rather than compressed: 0.3 ms instead of 11 ms at 224 px.

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
    return b"".join(parts)
