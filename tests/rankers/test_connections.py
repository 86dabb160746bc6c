"""Connections that are kept, against raw sockets that end them in every way."""

import gc
import re
import socket
import ssl
import threading

import pytest

from rar_mmdet.errors import RankerError
from rar_mmdet.rankers import ServerSettings
from rar_mmdet.rankers.connections import BrokenError, Connections, StatusError, moved
from rar_mmdet.rankers.server import Client

PATIENCE = 120.0  # seconds, in which also a machine with too much to do comes to it
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Raw:
    """Listens; `handle(server, connection)` gets each connection in turn, in one thread, and then it is closed."""

    def __init__(self, handle):
        self.listener, self.count, self.heads = socket.create_server(("127.0.0.1", 0)), 0, []
        self.closed = threading.Semaphore(0)  # released once for each connection
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"

        def loop():
            while True:
                try:
                    connection, _ = self.listener.accept()
                except OSError:
                    return
                self.count += 1
                with connection:
                    handle(self, connection)
                self.closed.release()

        threading.Thread(target=loop, daemon=True).start()

    def head(self, connection):
        """Read a request but for large bodies, of which nothing is waited for; empty when the other side is gone."""
        data = b""
        while b"\r\n\r\n" not in data and (part := connection.recv(65536)):
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        self.heads.append(head.decode("latin-1").lower() + "\r\n")
        length = int((re.search(r"content-length: (\d+)", self.heads[-1]) or "00")[1])
        while len(body) < length < 100 and (part := connection.recv(65536)):
            body += part  # who closes before all is read resets the connection, and an answer may be lost
        return data


@pytest.fixture
def raw():
    started = []

    def start(handle):
        started.append(Raw(handle))
        return started[-1]

    yield start
    for server in started:
        server.listener.close()


def test_one_connection_serves_many_requests(raw):
    def handle(server, connection):
        while server.head(connection):
            connection.sendall(OK)

    server = raw(handle)
    to = Connections(server.url, "key", PATIENCE)
    assert [to.ask("/models") for _ in range(5)] == ["ok"] * 5
    assert server.count == 1
    assert "authorization: bearer key\r\n" in server.heads[0]
    assert server.heads[0].startswith("get /v1/models http/1.1\r\n")


def test_one_that_the_server_closed_is_opened_anew(raw):
    """A server ends idle connections after some seconds without a word: no request may be lost by it."""

    def handle(server, connection):
        server.head(connection)
        connection.sendall(OK)

    server = raw(handle)
    to = Connections(server.url, "", PATIENCE)
    for number in range(3):
        assert to.ask("/models") == "ok"
        assert server.closed.acquire(timeout=PATIENCE)
        assert server.count == number + 1


@pytest.mark.parametrize("body", [None, b"{}"])
def test_one_that_the_server_closes_at_the_moment_of_a_request_is_opened_anew(raw, body):
    """It looks open when the request is sent; the request then has no answer, not even the beginning of one."""

    def handle(server, connection):
        server.head(connection)
        connection.sendall(OK)
        if server.count == 1:
            connection.recv(1)  # the next request, of which the server takes no notice any more

    server = raw(handle)
    to = Connections(server.url, "", PATIENCE)
    assert to.ask("/models") == "ok"
    assert to.ask("/chat", body) == "ok"
    assert server.count == 2


def test_why_a_large_body_is_refused_is_heard_though_it_was_not_taken(raw):
    """Who refuses by the length alone answers and closes; what was sent meanwhile breaks the pipe."""

    def handle(server, connection):
        server.head(connection)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):  # so that no reset wipes out the answer
            pass

    with pytest.raises(StatusError) as caught:
        Connections(raw(handle).url, "", PATIENCE).ask("/chat", b"x" * 20_000_000)
    assert (caught.value.status, caught.value.body) == (413, "too large")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "IncompleteRead"),
        (b"220 smtp.example ESMTP\r\n", "220 smtp"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "IncompleteRead"),
    ],
)
def test_answers_that_end_early_or_are_none(raw, answer, reason):
    def handle(server, connection):
        server.head(connection)
        connection.sendall(answer)

    with pytest.raises(BrokenError, match=reason):
        Connections(raw(handle).url, "", PATIENCE).ask("/chat", b"{}")


def test_silence_ends(raw):
    def handle(server, connection):
        while connection.recv(65536):  # until the other side gives up
            pass

    with pytest.raises(BrokenError, match="no answer within 0.2 s"):
        Connections(raw(handle).url, "", 0.2).ask("/chat", b"{}")


def test_a_server_without_a_certificate_is_not_believed(raw):
    """Here one that does not even speak TLS."""

    def handle(server, connection):
        connection.recv(65536)
        connection.sendall(OK)

    server = raw(handle)
    with pytest.raises(BrokenError) as caught:
        Connections(server.url.replace("http", "https"), "", PATIENCE).ask("/chat", b"{}")
    assert isinstance(caught.value.__cause__, ssl.SSLError)


def test_https_goes_through_the_proxys_tunnel(raw, monkeypatch):
    def handle(server, connection):
        server.head(connection)
        connection.sendall(b"HTTP/1.1 502 no such host\r\n\r\n")

    proxy = raw(handle)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:secret@"))
    with pytest.raises(BrokenError, match="502"):
        Connections("https://models.invalid/v1", "key", PATIENCE).ask("/chat", b"{}")
    assert proxy.heads[0].startswith("connect models.invalid:443 http/1.")
    assert "proxy-authorization: basic" in proxy.heads[0]
    assert "bearer" not in proxy.heads[0]  # the key is for the server alone


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "https://127.0.0.1:9"])
def test_proxies_of_another_kind_are_refused(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(RankerError, match="cannot be used: it must be an http:// one"):
        Connections("http://models.invalid/v1", "", PATIENCE)


def test_a_key_that_no_header_can_hold_is_refused_unseen():
    with pytest.raises(RankerError, match="characters that no header can hold") as caught:
        Connections("http://127.0.0.1:9/v1", "sk-1\r\nHost: evil", PATIENCE)
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "to"),
    [
        ("/v2/chat", "http://a:1/v2/chat"),
        ("https://a/v1/chat", "https://a/v1/chat"),
        ("https://b/v1/chat", None),
        ("http://a:x/v1", None),
        ("", None),
    ],
)
def test_redirects(location, to):
    assert moved(StatusError(307, {"location": location}, "", "http://a:1/v1/chat")) == to


def test_workers_end_with_their_client(raw):
    def handle(server, connection):
        while server.head(connection):
            connection.sendall(OK)

    client = Client(
        base_urls=[raw(handle).url], model="m", path="/chat", read=str, key="", settings=ServerSettings(),
        timeout=PATIENCE, max_retries=0,
    )  # fmt: skip

    def workers():
        return {thread for thread in threading.enumerate() if thread.name.startswith("rar_mmdet-server")}

    before = workers()  # of other clients, which may end meanwhile
    assert [found for part in client.run([lambda: [b"{}"]]) for found in part.values()] == [["ok"]]
    (worker,) = workers() - before  # one job, one worker
    del client
    gc.collect()
    worker.join(PATIENCE)
    assert not worker.is_alive()
