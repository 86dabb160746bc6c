"""HTTP/1.1 over connections that are kept: the standard library's, in the thread of whoever asks.

A request with a picture costs 0.17 ms of CPU time this way, 0.35 with urllib3, 0.8 with httpx, 1.2 with the `openai`
package around that (50 kB, one core, measured for docs/rankers.md); and nothing has to be installed.
"""

from __future__ import annotations

import base64
import re
import select
import ssl
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass_environment  # type: ignore[attr-defined]  # no stub has it

from rar_mmdet.errors import RankerError

__all__ = ["PORTS", "BrokenError", "Connections", "StatusError", "address_of", "moved", "proxy_of", "without_user"]

PORTS = {"http": 80, "https": 443}
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1|0\.0\.0\.0")


class BrokenError(Exception):
    """No whole answer came: the server is not there, closed the connection, or took too long."""


class StatusError(Exception):
    """The server answered with a status that is no success."""

    def __init__(self, status: int, header: dict[str, str], body: str, url: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.header, self.body, self.url = status, header, body, url  # header names in small letters


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class Connections:
    """Connections to one server, by way of the proxy that the environment names; several threads may use them.

    Args:
        base_url: may contain user and password, which are sent as such.
        key: sent as a bearer's token; may be empty.
        timeout: seconds to connect, and between two pieces of an answer.

    Raises:
        RankerError: the proxy, or the key, is none that can be used.
    """

    def __init__(self, base_url: str, key: str, timeout: float) -> None:
        self._base, self._timeout = without_user(base_url).rstrip("/"), timeout
        self._idle: dict[_Origin, list[HTTPConnection]] = {}
        self._headers = {"Content-Type": "application/json", "User-Agent": "rar_mmdet"}
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise RankerError("the key has characters that no header can hold; look for spaces and line ends in it")
        if (user := _user(base_url)) is not None:
            self._headers["Authorization"] = user
        elif key:
            self._headers["Authorization"] = f"Bearer {key}"
        proxy = proxy_of(base_url)
        self._proxy = None if proxy is None else urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if self._proxy is not None and (self._proxy.scheme != "http" or not self._proxy.hostname):
            raise RankerError(
                f"the proxy for {self._base}, {without_user(str(proxy))}, cannot be used: it must be an http:// one; "
                "correct HTTP_PROXY and HTTPS_PROXY, or name the server's host in NO_PROXY"
            )

    def ask(self, path: str, body: bytes | None = None, timeout: float | None = None) -> str:
        """What the server answers to a POST of `body`, or to a GET without one.

        Args:
            path: behind the base URL; or a whole URL.
            body: JSON.
            timeout: seconds, instead of the usual.

        Raises:
            BrokenError: no whole answer came.
            StatusError: it is no success; redirects are none, for they are the caller's to follow.
        """
        url = path if "://" in path else self._base + path
        parts = urlsplit(url)
        origin = _Origin(parts.scheme, *address_of(url))
        target = parts._replace(scheme="", netloc="").geturl() or "/"
        headers = self._headers
        if self._proxy is not None and origin.scheme == "http":  # https goes through a tunnel, see `_connect`
            target, user = url, _user(self._proxy.geturl())
            headers = headers if user is None else {**headers, "Proxy-Authorization": user}
        idle = self._idle.setdefault(origin, [])
        connection = _still_open(idle) or self._connect(origin)
        connection.timeout = timeout or self._timeout
        was_kept = connection.sock is not None
        cut: OSError | None = None
        answer: HTTPResponse | None = None
        try:
            if connection.sock is not None:
                connection.sock.settimeout(connection.timeout)
            try:
                connection.request("GET" if body is None else "POST", target, body, headers)
            except (BrokenPipeError, ConnectionResetError) as error:
                cut = error  # who refuses a large body may close while it is being sent; why, stands in the answer
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except TimeoutError as error:
            connection.close()
            raise BrokenError(f"no answer within {connection.timeout:g} s") from error
        except (OSError, HTTPException, UnicodeError, ValueError) as error:
            connection.close()
            if was_kept and answer is None and isinstance(error, ConnectionError):
                # The server ended an idle connection at the moment of the request (RFC 9112, 9.3.1).
                return self.ask(path, body, timeout)
            raise BrokenError(str(cut or error) or type(error).__name__) from error
        if not answer.will_close:
            idle.append(connection)
        if not 200 <= answer.status < 300:
            raise StatusError(answer.status, _small(answer), text, url)
        return text

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        """Read once: it takes some milliseconds."""
        return ssl.create_default_context()

    def _connect(self, origin: _Origin) -> HTTPConnection:
        """A connection that opens with its first request."""
        through = None if self._proxy is None else (self._proxy.hostname or "", self._proxy.port or 80)
        if origin.scheme == "http":
            return HTTPConnection(*(through or origin[1:]), timeout=self._timeout)
        secure = HTTPSConnection(*(through or origin[1:]), timeout=self._timeout, context=self._certificates)
        if self._proxy is not None:
            user = _user(self._proxy.geturl())
            secure.set_tunnel(origin.host, origin.port, {} if user is None else {"Proxy-Authorization": user})
        return secure


def _still_open(idle: list[HTTPConnection]) -> HTTPConnection | None:
    """The connection that was used last, unless the other side has closed it: then there is something to be read."""
    while idle:
        connection = idle.pop()
        if connection.sock is not None:
            poll = select.poll()
            poll.register(connection.sock, select.POLLIN)
            if not poll.poll(0):
                return connection
        connection.close()
    return None


def _small(answer: HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.getheaders()}


def _user(url: str) -> str | None:
    """The header of the user and password in a URL (RFC 7617)."""
    parts = urlsplit(url)
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a server.

    Raises:
        ValueError: the URL is none of http or https.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in PORTS:
        raise ValueError(f"{without_user(url)!r} is not like http://host:8000/v1")
    return parts.hostname, parts.port or PORTS[parts.scheme]


def without_user(url: str) -> str:
    """A URL without the user and password that may stand in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a server; never one for servers on this machine."""
    parts = urlsplit(url)
    proxies = getproxies()
    if _LOOPBACK.fullmatch(parts.hostname or "") or proxy_bypass_environment(parts.netloc.rpartition("@")[2], proxies):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")


def moved(error: StatusError) -> str | None:
    """Where a redirect leads on the same host; another gets neither photos nor key unless a config names it."""
    target = urljoin(error.url, error.header.get("location", ""))
    ours, theirs = urlsplit(error.url), urlsplit(target)
    down = ours.scheme == "https" and theirs.scheme != "https"
    try:
        return target if address_of(target)[0] == ours.hostname and not down and target != error.url else None
    except ValueError:  # no address at all
        return None
