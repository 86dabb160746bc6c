"""Connections that are kept, against raw sockets that end them in every way."""

import gc
import socket
import ssl
import threading

import pytest

from rar_mmdet.errors import RankerError
from rar_mmdet.rankers import ServerSettings
from rar_mmdet.rankers.connections import BrokenError, Connections, StatusError, moved
from rar_mmdet.rankers.server import Client

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Raw:
    """Listens; `handle(number, connection)` gets each connection in turn, in one thread."""

    def __init__(self, handle):
        self.listener, self.count, self.heads = socket.create_server(("127.0.0.1", 0)), 0, []
        self.ended, self.over = threading.Semaphore(0), threading.Event()  # one for each connection; when the test ends
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
                self.ended.release()

        threading.Thread(target=loop, daemon=True).start()

    def head(self, connection):
        """Read up to the end of a head, and what of its body came along; empty when the other side is gone."""
        data = b""
        while b"\r\n\r\n" not in data and (part := connection.recv(65536)):
            data += part
        self.heads.append(data.decode("latin-1").lower())
        return data


@pytest.fixture
def raw():
    started = []

    def start(handle):
        started.append(Raw(handle))
        return started[-1]

    yield start
    for server in started:
        server.over.set()
        server.listener.close()


def test_one_connection_serves_many_requests(raw):
    def handle(server, connection):
        while server.head(connection):
            connection.sendall(OK)

    server = raw(handle)
    to = Connections(server.url, "key", 60.0)
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
    to = Connections(server.url, "", 60.0)
    for number in range(3):
        assert to.ask("/models") == "ok"
        assert server.ended.acquire(timeout=300)
        assert server.count == number + 1


def test_why_a_large_body_is_refused_is_heard_though_it_was_not_taken(raw):
    """Who refuses by the length alone answers and closes; what was sent meanwhile breaks the pipe."""

    def handle(server, connection):
        server.head(connection)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):  # so that no reset wipes out the answer
            pass

    with pytest.raises(StatusError) as caught:
        Connections(raw(handle).url, "", 60.0).ask("/chat", b"x" * 20_000_000)
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
        Connections(raw(handle).url, "", 60.0).ask("/chat", b"{}")


def test_silence_ends(raw):
    server = raw(lambda server, connection: server.over.wait())
    with pytest.raises(BrokenError, match="no answer within 0.2 s"):
        Connections(server.url, "", 0.2).ask("/chat", b"{}")


def test_a_server_without_a_certificate_is_not_believed(raw):
    """Here one that does not even speak TLS."""
    server = raw(lambda server, connection: connection.sendall(OK))
    with pytest.raises(BrokenError) as caught:
        Connections(server.url.replace("http", "https"), "", 60.0).ask("/chat", b"{}")
    assert isinstance(caught.value.__cause__, ssl.SSLError)


def test_https_goes_through_the_proxys_tunnel(raw, monkeypatch):
    def handle(server, connection):
        server.head(connection)
        connection.sendall(b"HTTP/1.1 502 no such host\r\n\r\n")

    proxy = raw(handle)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:secret@"))
    with pytest.raises(BrokenError, match="502"):
        Connections("https://models.invalid/v1", "key", 60.0).ask("/chat", b"{}")
    assert proxy.heads[0].startswith("connect models.invalid:443 http/1.")
    assert "proxy-authorization: basic" in proxy.heads[0]
    assert "bearer" not in proxy.heads[0]  # the key is for the server alone


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "https://127.0.0.1:9"])
def test_proxies_of_another_kind_are_refused(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(RankerError, match="cannot be used: it must be an http:// one"):
        Connections("http://models.invalid/v1", "", 60.0)


def test_a_key_that_no_header_can_hold_is_refused_unseen():
    with pytest.raises(RankerError, match="characters that no header can hold") as caught:
        Connections("http://127.0.0.1:9/v1", "sk-1\r\nHost: evil", 60.0)
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
        base_urls=[raw(handle).url], model="m", path="/chat", read=str, key="", settings=ServerSettings(), timeout=60.0,
        max_retries=0,
    )  # fmt: skip

    def workers():
        return {thread for thread in threading.enumerate() if thread.name.startswith("rar_mmdet-server")}

    before = workers()  # of other tests, which may end meanwhile
    assert [found for part in client.run([lambda: [b"{}"]]) for found in part.values()] == [["ok"]]
    (own,) = workers() - before  # one job, one worker
    del client
    gc.collect()
    own.join(300)
    assert not own.is_alive()
