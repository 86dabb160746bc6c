"""Against a loopback server that behaves, and misbehaves, as told."""

import base64
import io
import json
import logging
import math
import multiprocessing
import pickle
import re
import socket
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("openai", reason="the optional extra rar-mmdet[openai] is not installed")

from rar_mmdet.errors import MissingAssetError, RankerError
from rar_mmdet.rankers import OpenAIRanker
from rar_mmdet.rankers import server as wire
from rar_mmdet.rankers.openai_ranker import _label_scores
from rar_mmdet.structures import RankStatus
from rar_mmdet.testing import make_shortlist

NAMES = ["cat", "dog", "red car", "bird's nest", "hot dog", "polar bear", "{k}", "bow, long"]
KEY = "sk-very-secret-0123456789"


class Server:
    """An OpenAI-compatible server in a thread. `script(n, body)` returns what to do with the n-th completion."""

    def __init__(self, script=None, log_probs=True, schema=True):
        self.script, self.log_probs, self.schema = script, log_probs, schema
        self.bodies, self.headers, self.times, self.lock = [], [], [], threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.reply(200, {"object": "list", "data": []})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.times.append(time.monotonic())
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                refused = server.refusal(body)
                action = ("refuse", refused) if refused else server.script(number, body) if server.script else None
                server.act(self, body, action)

            def reply(self, status, content, headers=()):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                pass  # broken pipes are what some tests are about

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def refusal(self, body):
        if body.get("logprobs") and not self.log_probs:
            return "logprobs are not supported"
        if body.get("response_format") and not self.schema:
            return "response_format is not supported"
        return None

    def act(self, handler, body, action):
        kind, value = action if isinstance(action, tuple) else (action, None)
        if kind is None:
            handler.reply(200, self.completion(body))
        elif kind == "refuse":
            handler.reply(400, {"error": {"message": value, "type": "invalid_request_error"}})
        elif kind == "status":
            handler.reply(value[0], {"error": {"message": f"bad key {KEY}"}}, value[1:])
        elif kind == "hang":
            time.sleep(value)
        elif kind == "half":
            data = json.dumps(self.completion(body)).encode()
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif kind == "raw":
            handler.reply(200, value)

    def completion(self, body, choices=1):
        """Prefers the name with the most letters; sees which option carries it, as a model would."""
        text = body["messages"][0]["content"][1]["text"]
        options = dict(line.split(". ", 1) for line in text.split("\n") if line[1:3] == ". ")
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A"}}
        if "Here are the optional categories:" in text:
            choice["message"]["content"] = "The answer: ['polar bear', \"bird's nest\", 'unicorn']"
        elif options:
            choice["message"]["content"] = max(options, key=lambda letter: len(options[letter]))
        if body.get("logprobs"):
            if "yes or no" in text:
                p = 0.05 + 0.9 * len(text.split("image a ")[1].split("?")[0]) / 40
                top = [(" Yes", math.log(p)), ("No", math.log(1 - p))]
            else:
                top = [(f" {letter}", 0.3 * len(name) - 9) for letter, name in options.items()]
                top = top or [("A", -0.1), ("B", -2.4)]
            entries = [{"token": t, "logprob": v, "bytes": None} for t, v in top]
            choice["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
        return {
            "id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice] * choices,
        }  # fmt: skip

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(**settings):
        servers.append(Server(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def make_ranker(url, **settings):
    defaults = {"model": "m", "image_size": 8, "timeout": 5.0, "max_retries": 1, "max_fallback_rate": 1.0}
    return OpenAIRanker(base_url=url, **{**defaults, **settings})


def crops(count, seed=0):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def lengths_of(shortlist):
    return torch.tensor([[float(len(NAMES[i])) for i in row] for row in shortlist.category_ids.tolist()])


@pytest.mark.parametrize("num_shifts", [1, None])
def test_letters_by_log_probabilities(serve, num_shifts):
    server, shortlist = serve(), make_shortlist(6, 4, 8)
    ranker = make_ranker(server.url, num_shifts=num_shifts)
    ranking = ranker.rank(crops(6), shortlist, NAMES)
    assert torch.allclose(ranking.log_probs, torch.log_softmax(0.3 * lengths_of(shortlist), 1), atol=1e-5)
    assert (ranking.status == RankStatus.OK).all()
    assert len(server.bodies) == 1 + 6 * (1 if num_shifts == 1 else 4)
    body = server.bodies[-1]
    assert (body["temperature"], body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (0, 1, True, 20)


def test_yesno(serve):
    server, shortlist = serve(), make_shortlist(3, 4, 8)
    ranker = make_ranker(server.url, ask="yesno")
    evidence = ranker.evidence(crops(3), shortlist, NAMES)
    assert torch.allclose(evidence, 0.05 + 0.9 * lengths_of(shortlist) / 40, atol=1e-5)
    ranker.rank(crops(3), shortlist, NAMES)
    assert ranker.report()["asked"] == 3


def test_generate_with_and_without_a_schema(serve):
    shortlist = make_shortlist(2, 8, 8)
    for schema in (True, False):
        server = serve(schema=schema)
        ranking = make_ranker(server.url, ask="generate").rank(crops(2), shortlist, NAMES)
        assert [NAMES[i] for i in shortlist.category_ids[0][ranking.order[0]][:2]] == ["polar bear", "bird's nest"]
        assert (ranking.status == RankStatus.PARTIAL).all()
        assert ("response_format" in server.bodies[-1]) is schema


def test_server_without_log_probabilities_gives_its_first_choice(serve, caplog):
    server, shortlist = serve(log_probs=False), make_shortlist(3, 4, 8)
    with caplog.at_level(logging.WARNING):
        ranking = make_ranker(server.url).rank(crops(3), shortlist, NAMES)
    assert torch.equal(ranking.order[:, 0], lengths_of(shortlist).argmax(1))
    assert (ranking.status == RankStatus.PARTIAL).all()
    assert ranking.log_probs is None
    assert "gives no log-probabilities" in caplog.text
    assert server.bodies[-1]["structured_outputs"] == {"choice": ["A", "B", "C", "D"]}
    with pytest.raises(RankerError, match="which ask='yesno' needs"):
        make_ranker(server.url, ask="yesno").rank(crops(1), make_shortlist(1, 4, 8), NAMES)


def test_abilities_are_probed_once(serve):
    server = serve()
    ranker = make_ranker(server.url)
    for seed in range(3):
        ranker.rank(crops(2, seed), make_shortlist(2, 4, 8), NAMES)
    probes = [b for b in server.bodies if "Answer with the letter A." in b["messages"][0]["content"][1]["text"]]
    assert len(probes) == 1


def test_the_image_arrives_unchanged(serve):
    server, pixels = serve(), crops(1)
    make_ranker(server.url).rank(pixels, make_shortlist(1, 4, 8), NAMES)
    url = server.bodies[-1]["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    image = np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    assert np.array_equal(image, pixels[0].permute(1, 2, 0).numpy())
    assert server.headers[-1]["content-type"] == "application/json"


def test_text_that_looks_like_a_picture_stays_text(serve):
    names = [f"data:image/png;base64, {i} \u00e9" for i in range(8)]
    server, extra = serve(), {"user": "data:image/png;base64,"}
    make_ranker(server.url, extra_body=extra).rank(crops(1), make_shortlist(1, 4, 8), names)
    picture, text = server.bodies[-1]["messages"][0]["content"]
    Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].partition(",")[2]))).verify()
    assert all(name in names for name in (line[3:] for line in text["text"].split("\n")[1:5]))
    assert server.bodies[-1]["user"] == extra["user"]


def completion_listing(*tokens):
    """A reply whose first token comes with these (token, log-probability) pairs."""
    top = [{"token": t, "logprob": v, "bytes": None} for t, v in tokens]
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": tokens[0][0]}}
    return ("raw", {"choices": [{**choice, "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}]})


def test_labels_that_are_nowhere_listed_are_shown(serve, caplog):
    thinking = completion_listing(("<think>", -0.01), ("\n", -5.0))
    server = serve(script=lambda number, body: thinking if number else None)
    with caplog.at_level(logging.WARNING):
        ranking = make_ranker(server.url).rank(crops(2), make_shortlist(2, 3, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()
    assert re.search(r"none of \['A', 'B', 'C'\] among .*'<think>'.*enable_thinking", caplog.text)


def test_a_label_listed_as_impossible_is_as_good_as_not_listed(serve):
    listed = completion_listing(("A", -0.5), ("B", -1.5), ("C", -math.inf), ("x", -math.inf))
    server = serve(script=lambda number, body: listed if number else None)
    ranking = make_ranker(server.url).rank(crops(1), make_shortlist(1, 3, 8), NAMES)
    assert (ranking.status == RankStatus.OK).all()
    assert ranking.order.tolist() == [[0, 1, 2]]


def test_a_long_wait_is_announced_once(serve, caplog, monkeypatch):
    monkeypatch.setattr("rar_mmdet.rankers.server._LONG_PAUSE", 1.0)
    busy = ("status", (429, ("Retry-After", "1")))
    server = serve(script=lambda number, body: busy if 0 < number < 4 else None)
    with caplog.at_level(logging.WARNING):
        make_ranker(server.url).rank(crops(3), make_shortlist(3, 3, 8), NAMES)
    assert caplog.text.count("trying again in 1 s") == 1


def test_spellings_of_a_letter_add_up_and_an_article_is_none(serve):
    reply = completion_listing((" A", -1.5), ("A", -1.5), ("(B", -3.0), (" a", -1.2), ("x", -7.0))
    server = serve(script=lambda number, body: reply if number else None)
    ranking = make_ranker(server.url).rank(crops(1), make_shortlist(1, 3, 8), NAMES)
    expected = torch.log_softmax(torch.tensor([[math.log(2) - 1.5, -3.0, -7.0 - math.log(2)]]), 1)
    assert torch.allclose(ranking.log_probs, expected, atol=1e-5)


@pytest.mark.parametrize("p", [(0.95,), (0.3,), (1.0,), (0.4, 0.35), (0.3, 0.3, 0.3999999), (0.7, 0.7), (1e300, 0.1)])
def test_letters_not_listed_are_below_those_listed(p):
    listed = [(letter, math.log(value)) for letter, value in zip("BDC", p, strict=False)]
    scores = _label_scores(wire.Reply("B", listed), [(letter,) for letter in "ABCDE"])
    by_letter = dict(zip("ABCDE", scores, strict=True))
    assert all(by_letter[letter] == pytest.approx(value) for letter, value in listed)
    unlisted = {value for letter, value in by_letter.items() if letter not in dict(listed)}
    assert len(unlisted) == 1
    bound = min(max(1 - sum(p), 1e-7), *p)  # as high as the server's list allows; beyond float32 it says nothing
    assert unlisted.pop() == pytest.approx(math.log(bound / 2))


def test_a_server_listing_its_first_choice_alone(serve, caplog):
    late = serve(script=lambda number, body: completion_listing(("B", -0.05)) if number else None)
    ranking = make_ranker(late.url).rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert ranking.order.tolist() == [[1, 0, 2, 3]] * 2
    assert (ranking.log_probs[:, 1] > math.log(0.9)).all()
    always = serve(script=lambda number, body: completion_listing(("B", -0.05)))
    ranking = make_ranker(always.url).rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert (ranking.status == RankStatus.PARTIAL).all()
    assert "gives no log-probabilities" in caplog.text


@pytest.mark.parametrize("name", ["5'10\" board", "a\\b", "bird's nest", "café, [x]"])
def test_a_chosen_name_survives_whatever_is_in_it(serve, name):
    ranker = make_ranker(serve(log_probs=False).url)  # the fake model prefers long names
    ranking = ranker.rank(crops(1), make_shortlist(1, 3, 3), ["x", "y", "z" + name])
    chosen = make_shortlist(1, 3, 3).category_ids[0, ranking.order[0, 0]]
    assert (int(chosen), int(ranking.status[0])) == (2, RankStatus.PARTIAL)


def test_names_cannot_speak_the_servers_markup(serve):
    markup = ["<|im_end|>", "<|im_start|>", "<\uff5cUser\uff5c>", "<image>", "<IMG_CONTEXT>", "</s>", "<s>", "<<SYS>>"]
    markup += ["<start_of_turn>", "<end_of_turn>", "<unk>", "[INST]", "[/INST]", "[IMG_BREAK]", "[SYSTEM_PROMPT]"]
    server = serve()
    make_ranker(server.url).rank(crops(1), make_shortlist(1, 3, 3), ["pan [big]", "x".join(markup), " ".join(markup)])
    text = server.bodies[-1]["messages"][0]["content"][1]["text"]
    assert not [token for token in markup if token in text]
    assert ". pan [big]\n" in text


def first_attempt(action):
    """Misbehave on the first attempt at each crop (the request after the probe, and every other one)."""
    seen = set()

    def script(number, body):
        image = body["messages"][0]["content"][0]["image_url"]["url"]
        if number == 0 or image in seen:
            return None
        seen.add(image)
        return action

    return script


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(("status", (429,)), id="429"),
        pytest.param(("status", (429, ("Retry-After", "0.1"))), id="429-retry-after"),
        pytest.param(("status", (429, ("Retry-After", "soon"))), id="429-retry-after-unreadable"),
        pytest.param(("status", (408,)), id="408"),
        pytest.param(("status", (500,)), id="500"),
        pytest.param(("status", (503,)), id="503"),
        pytest.param(("half", None), id="half-a-reply"),
        pytest.param(("raw", b'{"choices": [{"mess'), id="invalid-json"),
        pytest.param(("raw", b"<html>proxy error</html>"), id="html"),
        pytest.param(("raw", {"choices": []}), id="no-choice"),
        pytest.param(("raw", {"choices": [{"index": 0, "message": None}]}), id="no-message"),
        pytest.param(("raw", {"object": "error"}), id="no-choices-field"),
        pytest.param(("raw", b"[]"), id="a-list"),
    ],
)
def test_passing_failures_are_tried_again(serve, action, monkeypatch):
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 0.05)
    server, shortlist = serve(script=first_attempt(action)), make_shortlist(2, 4, 8)
    ranker = make_ranker(server.url)
    ranking = ranker.rank(crops(2), shortlist, NAMES)
    assert (ranking.status == RankStatus.OK).all()
    assert len(server.bodies) == 1 + 2 * 2


def test_all_failures_share_the_attempts(serve, monkeypatch):
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 0.01)
    failures = [("status", (500,)), ("raw", b"<html>"), ("half", None)]
    server = serve(script=lambda number, body: failures[number % 3] if number else None)
    ranking = make_ranker(server.url, max_retries=3).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()
    assert len(server.bodies) == 1 + 4


def test_pauses_grow_and_retry_after_is_waited_for(serve, monkeypatch):
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 0.1)
    busy = ("status", (503, ("Retry-After", "0.5")))
    plan = {1: ("status", (500,)), 2: ("raw", b""), 3: busy}
    server = serve(script=lambda number, body: plan.get(number))
    ranking = make_ranker(server.url, max_retries=3).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert (ranking.status == RankStatus.OK).all()
    gaps = np.diff(server.times[1:])
    assert (gaps >= [0.75 * 0.1, 0.75 * 0.2, 0.5]).all()


def test_retry_after_as_seconds_as_a_date_and_as_nonsense():
    assert wire._retry_after("7") == 7.0
    assert 97 < wire._retry_after(formatdate(time.time() + 100, usegmt=True)) <= 100
    for far in ("301", "86400", "1e999", formatdate(time.time() + 9999, usegmt=True)):
        assert wire._retry_after(far) == 300.0
    for none in ("", "0", "-1", "nan", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Oct 2015"):
        assert wire._retry_after(none) is None


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_refused_for_itself_is_one_region_without_an_answer(serve, status):
    server = serve(script=lambda number, body: ("status", (status,)) if number == 2 else None)
    ranking = make_ranker(server.url).rank(crops(4), make_shortlist(4, 4, 8), NAMES)
    assert sorted(ranking.status.tolist()) == [RankStatus.OK] * 3 + [RankStatus.FALLBACK]
    assert len(server.bodies) == 1 + 4  # not tried again: it would be refused again


def test_a_server_that_refuses_everything_stops_the_run_with_its_reason(serve):
    server = serve(script=lambda number, body: ("refuse", "no images, please") if number else None)
    with pytest.raises(RankerError, match="16 requests in a row.*no images, please"):
        make_ranker(server.url).rank(crops(20), make_shortlist(20, 4, 8), NAMES)


@pytest.fixture
def one_thread():
    """PyTorch's own threads do not survive a fork either."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_forked_process_opens_its_own_connection(serve, one_thread):
    server, context = serve(), multiprocessing.get_context("fork")
    ranker, answers = make_ranker(server.url), context.SimpleQueue()

    def ask(seed):
        return ranker.rank(crops(2, seed), make_shortlist(2, 4, 8), NAMES).status.tolist()

    ask(0)
    child = context.Process(target=lambda: answers.put(ask(1)))
    child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    assert not alive, "the child waits for a thread that did not come along"
    assert answers.get() == ask(2) == [RankStatus.OK] * 2


def test_a_proxy_is_not_asked_for_this_machine(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    ranking = make_ranker(serve().url).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert (ranking.status == RankStatus.OK).all()


def test_two_choices_are_not_one(serve):
    server = serve(script=lambda n, b: ("raw", server.completion(b, choices=2)) if n else None)
    ranking = make_ranker(server.url, max_retries=0).rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()


def test_hanging_requests_time_out_and_fall_back(serve):
    bad = crops(3)[1]

    def script(number, body):
        image = body["messages"][0]["content"][0]["image_url"]["url"]
        data = np.array(Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))))
        return ("hang", 6.0) if np.array_equal(data, bad.permute(1, 2, 0).numpy()) else None

    ranker = make_ranker(serve(script=script).url, timeout=1.5, max_retries=0)
    started = time.monotonic()
    ranking = ranker.rank(crops(3), make_shortlist(3, 4, 8), NAMES)
    assert time.monotonic() - started < 5.5  # it did not wait for the answer
    assert ranking.status.tolist() == [RankStatus.OK, RankStatus.FALLBACK, RankStatus.OK]
    assert torch.equal(ranking.order[1], torch.arange(4))


def test_unanswered_regions_are_asked_again_by_the_next_run(serve, tmp_path):
    settings = {"max_retries": 0, "cache": tmp_path / "a.sqlite", "max_concurrency": 1}
    sick = serve(script=lambda number, body: ("status", (500,)) if number in (2, 4) else None)
    ranker = make_ranker(sick.url, **settings)
    ranking = ranker.rank(crops(5), make_shortlist(5, 4, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).sum() == 2
    well = serve()
    again = make_ranker(well.url, **settings)
    assert (again.rank(crops(5), make_shortlist(5, 4, 8), NAMES).status == RankStatus.OK).all()
    assert (again.report()["cached"], again.report()["asked"]) == (3, 2)


def test_a_server_that_dies_half_way_stops_the_run_and_it_resumes(serve, tmp_path):
    settings = {"max_retries": 0, "cache": tmp_path / "a.sqlite", "max_concurrency": 4}
    shortlist, pixels = make_shortlist(60, 4, 8), crops(60)
    dying = serve(script=lambda number, body: ("half", None) if number > 20 else None)
    with pytest.raises(RankerError, match=r"16 requests in a row.*kept in the cache; start the run again"):
        make_ranker(dying.url, **settings).rank(pixels, shortlist, NAMES)
    well = serve()
    resumed = make_ranker(well.url, **settings)
    ranking = resumed.rank(pixels, shortlist, NAMES)
    assert (ranking.status == RankStatus.OK).all()
    cached = resumed.report()["cached"]
    assert 20 - settings["max_concurrency"] <= cached <= 20  # what is under way when the run stops is asked again
    assert len(well.bodies) == 1 + 60 - cached


def test_refused_connection(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    ranker = make_ranker(url)
    (line,) = ranker.missing_assets()
    assert f"no server at {url}" in line
    assert "vllm serve m" in line
    with pytest.raises(MissingAssetError, match="no server at"):
        ranker.rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    with pytest.raises(RankerError, match="does not answer.*start_timeout"):
        make_ranker(url, start_timeout=0.3).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


def test_a_host_that_cannot_be_named():
    (line,) = make_ranker("http://a..b:8000/v1").missing_assets()
    assert "no server at http://a..b:8000/v1" in line


def test_a_model_list_that_is_a_web_page_will_do(serve):
    server = serve()
    server.http.RequestHandlerClass.do_GET = lambda self: self.reply(200, b"<html>", [("Content-Type", "text/html")])
    assert make_ranker(server.url).rank(crops(1), make_shortlist(1, 4, 8), NAMES).status.tolist() == [RankStatus.OK]


def test_slow_start_is_waited_for():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []

    def start_later():
        time.sleep(0.7)
        server = Server.__new__(Server)
        original = ThreadingHTTPServer.server_bind

        def bind(self):
            self.server_address = ("127.0.0.1", port)
            original(self)

        ThreadingHTTPServer.server_bind = bind
        try:
            Server.__init__(server)
        finally:
            ThreadingHTTPServer.server_bind = original
        started.append(server)

    threading.Thread(target=start_later).start()
    ranker = make_ranker(f"http://127.0.0.1:{port}/v1", start_timeout=20.0)
    assert (ranker.rank(crops(2), make_shortlist(2, 4, 8), NAMES).status == RankStatus.OK).all()
    started[0].close()


@pytest.mark.parametrize(("status", "message"), [(401, "AuthenticationError"), (403, "Permission"), (404, "NotFound")])
def test_lasting_refusals_stop_the_run(serve, status, message):
    server = serve(script=lambda number, body: ("status", (status,)))
    with pytest.raises(RankerError, match=message):
        make_ranker(server.url).rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    late = serve(script=lambda number, body: ("status", (status,)) if number else None)
    with pytest.raises(RankerError, match="refuses a request"):
        make_ranker(late.url).rank(crops(2), make_shortlist(2, 4, 8), NAMES)


def test_the_key_is_sent_and_never_shown(serve, monkeypatch, caplog):
    monkeypatch.setenv("RAR_TEST_KEY", KEY)
    server = serve(script=lambda number, body: ("status", (401,)) if number else None)
    ranker = make_ranker(server.url, api_key_env="RAR_TEST_KEY")
    with caplog.at_level(logging.DEBUG), pytest.raises(RankerError) as caught:
        ranker.rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value)
    assert "<key>" in str(caught.value)
    assert KEY not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("rar_mmdet"))
    assert KEY.encode() not in pickle.dumps(ranker)
    assert KEY not in json.dumps(dict(ranker.identity()))


def test_a_key_at_the_cut_of_a_long_message_is_not_shown_in_part():
    client = wire.Client(base_url="http://127.0.0.1:9/v1", key=KEY, max_concurrency=1, timeout=1.0, max_retries=0)
    for length in range(270, 305):
        assert KEY[:8] not in client._say("fails", ValueError("x" * length + KEY))


def test_a_missing_key_is_said(serve, monkeypatch):
    monkeypatch.delenv("RAR_TEST_KEY", raising=False)
    ranker = make_ranker(serve().url, api_key_env="RAR_TEST_KEY")
    assert "the environment variable RAR_TEST_KEY is not set" in ranker.missing_assets()[0]


def test_concurrency_is_bounded(serve):
    at_once, peak, lock = [0], [0], threading.Lock()

    def script(number, body):
        with lock:
            at_once[0] += 1
            peak[0] = max(peak[0], at_once[0])
        time.sleep(0.02)
        with lock:
            at_once[0] -= 1

    make_ranker(serve(script=script).url, max_concurrency=5).rank(crops(30), make_shortlist(30, 4, 8), NAMES)
    assert 2 <= peak[0] <= 5


def test_no_regions_need_no_server():
    ranker = make_ranker("http://127.0.0.1:9/v1")
    assert len(ranker.rank(crops(0), make_shortlist(0, 4, 8), NAMES)) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ask": "likelihood"}, "OpenAIRanker cannot ask='likelihood'"),
        ({"base_url": "localhost:8000"}, "base_url must look like"),
        ({"base_url": "http://h:99999/v1"}, "base_url must look like"),
        ({"base_url": "http:///v1"}, "base_url must look like"),
        ({"max_concurrency": 0}, "need max_concurrency >= 1"),
        ({"extra_body": {"messages": []}}, "'messages' are the ranker's own"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        OpenAIRanker(**{"base_url": "http://127.0.0.1:9/v1", "model": "m", **settings})
