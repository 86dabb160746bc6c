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
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loopback import KEY, Server
from PIL import Image

from rar_mmdet.errors import ConfigError, MissingAssetError, RankerError
from rar_mmdet.rankers import Generate, Letter, OpenAIRanker, ServerSettings
from rar_mmdet.rankers import server as wire
from rar_mmdet.rankers.completions import Reply
from rar_mmdet.rankers.dialect import CHOICES, QUIET
from rar_mmdet.rankers.openai_ranker import _label_scores
from rar_mmdet.structures import RankStatus
from rar_mmdet.testing import make_shortlist

NAMES = ["cat", "dog", "red car", "bird's nest", "hot dog", "polar bear", "{k}", "bow, long"]


def make_ranker(url, **settings):
    limits = {"max_fallback_rate": 1.0}
    defaults = {"model": "m", "image_size": 8, "timeout": 60.0, "max_retries": 1, "limits": limits}
    return OpenAIRanker(base_url=url, **{**defaults, **settings})


def crops(count, seed=0):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def lengths_of(shortlist):
    return torch.tensor([[float(len(NAMES[i])) for i in row] for row in shortlist.category_ids.tolist()])


@pytest.mark.parametrize("num_shifts", [1, None])
def test_letters_by_log_probabilities(serve, num_shifts):
    server, shortlist = serve(), make_shortlist(6, 4, 8)
    ranker = make_ranker(server.url, ask=Letter(num_shifts=num_shifts))
    ranking = ranker.rank(crops(6), shortlist, NAMES)
    assert torch.allclose(ranking.log_probs, torch.log_softmax(0.3 * lengths_of(shortlist), 1), atol=1e-5)
    assert (ranking.status == RankStatus.OK).all()
    assert len(server.bodies) == 1 + 6 * (1 if num_shifts == 1 else 4)
    body = server.bodies[-1]
    assert (body["temperature"], body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (0, 1, True, 20)


def test_the_short_form_of_letters_is_one_order(serve):
    assert make_ranker(serve().url, ask="letter").ask == make_ranker(serve().url).ask == Letter(num_shifts=1)


def test_yesno(serve):
    server, shortlist = serve(), make_shortlist(3, 4, 8)
    ranker = make_ranker(server.url, ask="yesno")
    ranking = ranker.rank(crops(3), shortlist, NAMES)
    p = 0.05 + 0.9 * lengths_of(shortlist) / 40
    assert torch.allclose(ranking.log_probs, torch.log_softmax((p / (1 - p)).log(), 1), atol=1e-5)
    assert torch.allclose(ranking.label_mass, torch.ones(3), atol=1e-5)
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
    monkeypatch.setattr(wire, "_LONG_PAUSE", 1.0)
    monkeypatch.setattr(wire, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=time.sleep, time=time.time))
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
    scores, mass = _label_scores(Reply("B", listed), [(letter,) for letter in "ABCDE"])
    assert mass == pytest.approx(min(sum(min(value, 1.0) for value in p), 1.0))  # of those listed, and no guess
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
    assert 0 < wire._retry_after(formatdate(time.time() + 250, usegmt=True)) <= 250
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


def test_a_forked_process_opens_its_own_connection(serve, one_thread):
    server, context = serve(), multiprocessing.get_context("fork")
    ranker, answers = make_ranker(server.url), context.SimpleQueue()

    def ask(seed):
        return ranker.rank(crops(2, seed), make_shortlist(2, 4, 8), NAMES).status.tolist()

    ask(0)
    child = context.Process(target=lambda: answers.put(ask(1)))
    child.start()
    child.join(300)
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


def test_hanging_requests_time_out_and_fall_back(serve, monkeypatch):
    pixels, shortlist = crops(3), make_shortlist(3, 4, 8)

    def script(number, body):
        image = body["messages"][0]["content"][0]["image_url"]["url"]
        data = np.array(Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))))
        return "hang" if np.array_equal(data, pixels[1].permute(1, 2, 0).numpy()) else None

    server = serve(script=script)
    ranker, others = make_ranker(server.url, max_retries=0), torch.tensor([0, 2])
    ranker.rank(pixels[others], shortlist[others], NAMES)  # their answers are known when time gets short
    monkeypatch.setattr(ranker.client.nodes[0].connections, "_timeout", 0.3)
    ranking = ranker.rank(pixels, shortlist, NAMES)
    assert not server.closed.is_set()  # until then it does not answer
    assert ranking.status.tolist() == [RankStatus.OK, RankStatus.FALLBACK, RankStatus.OK]
    assert torch.equal(ranking.order[1], torch.arange(4))


def test_unanswered_regions_are_asked_again_by_the_next_run(serve, tmp_path):
    settings = {"max_retries": 0, "cache": tmp_path / "a.sqlite", "server": {"max_concurrency": 1}}
    server = serve(script=lambda number, body: ("status", (500,)) if number in (2, 4) else None)
    ranker = make_ranker(server.url, **settings)
    ranking = ranker.rank(crops(5), make_shortlist(5, 4, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).sum() == 2
    again = make_ranker(server.url, **settings)
    assert (again.rank(crops(5), make_shortlist(5, 4, 8), NAMES).status == RankStatus.OK).all()
    assert (again.report()["cached"], again.report()["asked"]) == (3, 2)


def test_a_server_that_dies_half_way_stops_the_run_and_it_resumes(serve, tmp_path):
    settings = {"max_retries": 0, "cache": tmp_path / "a.sqlite", "server": {"max_concurrency": 4}}
    shortlist, pixels = make_shortlist(60, 4, 8), crops(60)
    server = serve(script=lambda number, body: ("half", None) if number > 20 else None)
    with pytest.raises(RankerError, match=r"16 requests in a row.*kept in the cache; start the run again"):
        make_ranker(server.url, **settings).rank(pixels, shortlist, NAMES)
    server.script, before = None, len(server.bodies)
    resumed = make_ranker(server.url, **settings)
    ranking = resumed.rank(pixels, shortlist, NAMES)
    assert (ranking.status == RankStatus.OK).all()
    cached = resumed.report()["cached"]
    assert 20 - 4 <= cached <= 20  # what is under way when the run stops is asked again
    late = len(server.bodies) - before - (1 + 60 - cached)
    assert 0 <= late <= 4  # those under way may reach the server after the run has stopped


def test_another_server_is_another_model(serve, tmp_path):
    for _ in range(2):
        ranker = make_ranker(serve().url, cache=tmp_path / "a.sqlite")
        ranker.rank(crops(2), make_shortlist(2, 4, 8), NAMES)
        assert ranker.report()["asked"] == 2


def test_refused_connection():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        ranker = make_ranker(url)
        (line,) = ranker.missing_assets()
        assert f"no server at {url}" in line
        assert "vllm serve m" in line
        with pytest.raises(MissingAssetError, match="no server at"):
            ranker.rank(crops(1), make_shortlist(1, 4, 8), NAMES)
        with pytest.raises(RankerError, match="does not answer.*start_timeout"):
            make_ranker(url, server={"start_timeout": 0.3}).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


def test_a_host_that_cannot_be_named():
    (line,) = make_ranker("http://a..b:8000/v1").missing_assets()
    assert "no server at http://a..b:8000/v1" in line


def test_a_model_list_that_is_a_web_page_will_do(serve):
    server = serve()
    server.http.RequestHandlerClass.do_GET = lambda self: self.reply(200, b"<html>", [("Content-Type", "text/html")])
    assert make_ranker(server.url).rank(crops(1), make_shortlist(1, 4, 8), NAMES).status.tolist() == [RankStatus.OK]


def test_slow_start_is_waited_for(monkeypatch):
    bound, looks, started = socket.socket(), [], []
    bound.bind(("127.0.0.1", 0))
    look = wire.Client._get_models

    def start_at_the_third_look(client, node):
        looks.append(node.url)
        if len(looks) == 3:
            started.append(Server(bound=bound))
        return look(client, node)

    monkeypatch.setattr(wire.Client, "_get_models", start_at_the_third_look)
    monkeypatch.setattr(wire, "_PAUSE_BETWEEN_LOOKS", 0.01)
    ranker = make_ranker(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", server={"start_timeout": 300.0})
    assert (ranker.rank(crops(2), make_shortlist(2, 4, 8), NAMES).status == RankStatus.OK).all()
    assert len(looks) == 3
    started[0].close()


@pytest.mark.parametrize(
    ("status", "message"), [(401, "HTTP 401.*wants a key"), (403, "HTTP 403.*wants a key"), (404, "HTTP 404")]
)
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
    ranker = make_ranker(server.url, server={"api_key_env": "RAR_TEST_KEY"})
    with caplog.at_level(logging.DEBUG), pytest.raises(RankerError) as caught:
        ranker.rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value)
    assert "<key>" in str(caught.value)
    assert KEY not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("rar_mmdet"))
    assert KEY.encode() not in pickle.dumps(ranker)
    assert KEY not in json.dumps(dict(ranker.identity()))


def test_a_key_at_the_cut_of_a_long_message_is_not_shown_in_part():
    client = wire.Client(
        base_urls=["http://127.0.0.1:9/v1"], model="m", path="/chat/completions", read=str, key=KEY,
        settings=ServerSettings(), timeout=1.0, max_retries=0,
    )  # fmt: skip
    for length in range(270, 305):
        assert KEY[:8] not in client._say("fails", ValueError("x" * length + KEY), client.nodes[0])


def test_a_missing_key_is_said(serve, monkeypatch):
    monkeypatch.delenv("RAR_TEST_KEY", raising=False)
    ranker = make_ranker(serve().url, server={"api_key_env": "RAR_TEST_KEY"})
    assert "the environment variable RAR_TEST_KEY is not set" in ranker.missing_assets()[0]


def test_concurrency_is_bounded(serve):
    """Each request waits until five are there: fewer would wait in vain, and of more the barrier would tell."""
    at_once, peak, lock, five = [0], [0], threading.Lock(), threading.Barrier(5)

    def script(number, body):
        if number == 0:
            return
        with lock:
            at_once[0] += 1
            peak[0] = max(peak[0], at_once[0])
        five.wait(300)
        with lock:
            at_once[0] -= 1

    make_ranker(serve(script=script).url, server={"max_concurrency": 5}, timeout=300.0).rank(
        crops(30), make_shortlist(30, 4, 8), NAMES
    )
    assert peak == [5]


def test_no_regions_need_no_server():
    ranker = make_ranker("http://127.0.0.1:9/v1")
    assert len(ranker.rank(crops(0), make_shortlist(0, 4, 8), NAMES)) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ask": "likelihood"}, "OpenAIRanker cannot ask='likelihood'"),
        ({"timeout": 0}, "need timeout > 0 and max_retries >= 0, got 0 and 5"),
        ({"server": {"api_key": "sk"}}, "server has no key 'api_key'; its keys: api_key_env, max_concurrency"),
        ({"base_url": "localhost:8000"}, "base_url must look like"),
        ({"base_url": "http://h:99999/v1"}, "base_url must look like"),
        ({"base_url": "http:///v1"}, "base_url must look like"),
        ({"server": {"max_concurrency": 0}}, "need max_concurrency >= 1"),
        ({"extra_body": {"messages": []}}, "'messages' are the ranker's own"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        OpenAIRanker(**{"base_url": "http://127.0.0.1:9/v1", "model": "m", **settings})


# What servers say.


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"error": {"message": "image is larger than 4 MB"}}, id="OpenAI"),
        pytest.param({"detail": "image is larger than 4 MB"}, id="FastAPI"),
        pytest.param({"error": "image is larger than 4 MB"}, id="Ollama"),
        pytest.param({"object": "error", "message": "image is larger than 4 MB", "code": 400}, id="old-vLLM"),
        pytest.param({"detail": [{"loc": ["body"], "msg": "image is larger than 4 MB"}]}, id="pydantic"),
        pytest.param({"errors": [{"title": "image is larger than 4 MB"}]}, id="a-list"),
        pytest.param(["image is larger than 4 MB"], id="a-bare-list"),
        pytest.param({"error": {"message": json.dumps({"why": "image is larger than 4 MB"})}}, id="JSON-in-text"),
        pytest.param(b"image is larger than 4 MB", id="plain"),
        pytest.param(b"<html><head><title>image is larger than 4 MB</title></head></html>", id="HTML-title"),
        pytest.param(b"<!doctype html><html><body><h1>413</h1><p>image is larger than 4&nbsp;MB", id="HTML"),
    ],
)
def test_the_servers_reason_is_shown(serve, content):
    server = serve(refuse=lambda body: content)
    with pytest.raises(RankerError, match="rejects a plain request: .*image is larger than 4.MB"):
        make_ranker(server.url).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


def test_a_reason_repeats_no_picture(serve):
    def refuse(body):
        return {"detail": [{"loc": ["body"], "msg": "no pictures", "input": body}], "sent": json.dumps(body)}

    with pytest.raises(RankerError, match="no pictures") as caught:
        make_ranker(serve(refuse=refuse).url).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert "iVBOR" not in str(caught.value)
    assert len(str(caught.value)) < 500


def refuses(*fields, reason="Unsupported parameter: '{}' is not supported with this model."):
    return lambda body: next((reason.format(field) for field in fields if field in body), None)


@pytest.mark.parametrize(
    ("refuse", "sent", "left_out"),
    [
        pytest.param(refuses("max_tokens"), {"max_completion_tokens": 1}, {"max_tokens"}, id="renamed-limit"),
        pytest.param(
            refuses("max_tokens", "max_completion_tokens"), {}, {"max_tokens", "max_completion_tokens"}, id="no-limit"
        ),
        pytest.param(refuses("seed"), {"max_tokens": 1}, {"seed"}, id="no-seed"),
        pytest.param(refuses("seed", "temperature"), {}, {"seed", "temperature"}, id="no-seed-no-temperature"),
        pytest.param(refuses("seed", "temperature", "max_tokens"), {"max_completion_tokens": 1}, {"seed"}, id="three"),
        pytest.param(refuses("seed", reason="extra fields not permitted: {}"), {}, {"seed"}, id="another-wording"),
        pytest.param(refuses("seed", reason="no"), {"max_tokens": 1}, {"seed"}, id="unexplained"),
        pytest.param(refuses("max_tokens", reason="no"), {"seed": 0}, {"max_tokens"}, id="unexplained-limit"),
        pytest.param(refuses("seed", "temperature", reason="?"), {}, {"seed", "temperature"}, id="two-unexplained"),
        pytest.param(
            lambda body: "max_tokens must be at least 16" if body.get("max_tokens", 99) < 16 else None,
            {"max_tokens": 16}, set(), id="at-least-sixteen",
        ),
    ],
)  # fmt: skip
def test_refused_fields_are_left_out_or_renamed(serve, caplog, refuse, sent, left_out):
    server = serve(refuse=refuse)
    with caplog.at_level(logging.WARNING):
        ranker = make_ranker(server.url)
        for seed in range(2):
            ranking = ranker.rank(crops(3, seed), make_shortlist(3, 4, 8), NAMES)
            assert (ranking.status == RankStatus.OK).all()
    body = server.bodies[-1]
    assert body["logprobs"] is True
    assert sent.items() <= body.items()
    assert not left_out & set(body)
    assert caplog.text.count("does not take every field") == 1
    assert sum(refuse(body) is not None for body in server.bodies) <= 6


@pytest.mark.parametrize("field", ["seed", "temperature", "max_tokens", "model"])
def test_a_config_can_leave_a_field_out(serve, field):
    server = serve()
    make_ranker(server.url, extra_body={field: None}).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert field not in server.bodies[-1]


def test_fields_of_a_config_replace_ours(serve):
    server = serve()
    extra = {"max_completion_tokens": 8, "temperature": 1.0, "logprobs": None}
    ranking = make_ranker(server.url, extra_body=extra).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    body = server.bodies[-1]
    assert (body["max_completion_tokens"], body["temperature"]) == (8, 1.0)
    assert not {"max_tokens", "logprobs", "top_logprobs"} & set(body)
    assert ranking.log_probs is None


def test_a_refused_field_of_the_config_is_named_with_its_cure(serve):
    server = serve(refuse=refuses("repetition_penalty"))
    ranker = make_ranker(server.url, extra_body={"repetition_penalty": 1.0})
    with pytest.raises(RankerError, match=r"'repetition_penalty' is not .* extra_body=\{'repetition_penalty': None\}"):
        ranker.rank(crops(1), make_shortlist(1, 4, 8), NAMES)


@pytest.mark.parametrize(
    "reason",
    [
        "Cannot request more than {n} logprobs.",
        "Requested sample logprobs of 20, which is greater than max allowed: {n}",
        "top_logprobs: Input should be less than or equal to {n}",
        "top_logprobs must be between 0 and {n}",
        "too many logprobs",  # the limit is found by halving
    ],
)
def test_fewer_log_probabilities_are_asked_for(serve, reason):
    server = serve(refuse=lambda body: reason.format(n=5) if body.get("top_logprobs", 0) > 5 else None)
    ranking = make_ranker(server.url).rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert (ranking.status == RankStatus.OK).all()
    assert ranking.log_probs is not None
    assert 2 <= server.bodies[-1]["top_logprobs"] <= 5


def test_log_probabilities_of_other_forms(serve):
    def script(number, body):
        completion = server.completion(body)
        (choice,) = completion["choices"]
        entries = choice["logprobs"]["content"][0]["top_logprobs"]
        as_dict = {entry["token"]: entry["logprob"] for entry in entries}
        choice["logprobs"] = {"tokens": ["A"], "token_logprobs": [-0.1], "top_logprobs": [as_dict]}
        return ("raw", completion)

    server = serve(script=script)
    shortlist = make_shortlist(2, 4, 8)
    ranking = make_ranker(server.url).rank(crops(2), shortlist, NAMES)
    assert torch.allclose(ranking.log_probs, torch.log_softmax(0.3 * lengths_of(shortlist), 1), atol=1e-5)


def message(**fields):
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **fields}}]}


@pytest.mark.parametrize(
    "completion",
    [
        pytest.param(message(content=[{"type": "text", "text": "B"}]), id="parts"),
        pytest.param(message(content=["B"]), id="a-list-of-texts"),
        pytest.param(message(content={"type": "text", "text": "B"}), id="one-part"),
        pytest.param(
            message(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "A?"}]}, {"text": "B"}]),
            id="a-thought-and-a-part",
        ),
        pytest.param(message(content="B", reasoning_content="A? No. C?"), id="thoughts-beside"),
        pytest.param(message(content=None, reasoning_content="A? C?\nThe answer is B"), id="everything-a-thought"),
        pytest.param({"choices": [{"text": "B", "finish_reason": "stop"}]}, id="plain-completion"),
        pytest.param(message(content="B \ud83d"), id="half-an-emoji"),
    ],
)
def test_forms_of_a_message(serve, completion):
    server = serve(log_probs=False, script=lambda number, body: ("raw", completion))
    ranking = make_ranker(server.url).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert ranking.order.tolist() == [[1, 0, 2, 3]]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"content": "I cannot help with that."}, "no candidate found in the reply 'I cannot help with that.'"),
        ({"content": None, "refusal": "I can't look at faces."}, 'the model refuses: "I can\'t look at faces."'),
        ({"content": None}, "no candidate found in the reply ''"),
    ],
)
@pytest.mark.parametrize("ask", ["letter", "generate"])
def test_refusals_are_shown_in_the_models_words(serve, caplog, ask, fields, said):
    server = serve(log_probs=False, script=lambda number, body: ("raw", message(**fields)))
    with caplog.at_level(logging.WARNING):
        ranking = make_ranker(server.url, ask=ask).rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()
    assert said in caplog.text


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (
            {"finish_reason": "content_filter", "message": {"content": ""}},
            "the server's content filter stopped the reply",
        ),
        (
            {"finish_reason": "length", "message": {"content": None, "reasoning_content": "Well, A may"}},
            "the model thought until its tokens were used up; .*enable_thinking.*max_new_tokens",
        ),
        ({"finish_reason": "length", "message": {"content": "['polar b"}}, "cut at the limit of its tokens; give more"),
    ],
)
def test_why_a_reply_is_not_whole_is_shown(serve, caplog, choice, said):
    server = serve(script=lambda number, body: ("raw", {"choices": [choice]}))
    with caplog.at_level(logging.WARNING):
        make_ranker(server.url, ask="generate").rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert re.search(said, caplog.text)


def test_an_error_inside_a_good_status_is_shown(serve):
    server = serve(script=lambda number, body: ("raw", {"error": {"message": "out of credits"}}))
    with pytest.raises(RankerError, match="does not answer the first request.*out of credits"):
        make_ranker(server.url, max_retries=0).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


def test_letters_without_labels_in_the_list_are_read_as_text(serve):
    """A replica that gives no log-probabilities, beside one that does."""
    server = serve(script=lambda number, body: ("raw", message(content="B")) if number == 1 else None)
    shortlist = make_shortlist(3, 4, 8)
    ranking = make_ranker(server.url, server={"max_concurrency": 1}).rank(crops(3), shortlist, NAMES)
    assert ranking.status.tolist() == [RankStatus.PARTIAL, RankStatus.OK, RankStatus.OK]
    assert ranking.has_log_probs.tolist() == [False, True, True]
    assert ranking.order[0].tolist() == [1, 0, 2, 3]


def test_a_long_list_gets_room_for_a_long_reply(serve):
    server = serve()
    ranker = make_ranker(server.url, ask="generate")
    ranker.rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert server.bodies[-1]["max_tokens"] == 256
    names = [f"a rather long name of a category, number {i}" for i in range(8)]
    ranker.rank(crops(1), make_shortlist(1, 8, 8), names)
    assert server.bodies[-1]["max_tokens"] > 300
    make_ranker(server.url, ask=Generate(max_new_tokens=9)).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert server.bodies[-1]["max_tokens"] == 9


# Addresses, keys, models.


def test_a_wrong_model_is_told_what_there_is(serve):
    server = serve(models=("qwen-vl-7b", "llava"), script=lambda number, body: ("status", (404,)))
    with pytest.raises(RankerError, match="did you mean 'qwen-vl-7b'\\? It serves qwen-vl-7b, llava"):
        make_ranker(server.url, model="qwen-vl").rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    server = serve(models=("llava",), refuse=lambda body: "unknown model")
    with pytest.raises(RankerError, match="unknown model. It does not serve model='m'. It serves llava"):
        make_ranker(server.url).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


def test_an_address_without_v1_is_suspected(serve):
    server = serve(script=lambda number, body: ("page", (404, {"detail": "Not Found"})))
    with pytest.raises(RankerError, match="does not end in /v1, as most do"):
        make_ranker(server.url.removesuffix("/v1")).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_wanted_says_how_to_give_it(serve, monkeypatch, status):
    server = serve(script=lambda number, body: ("status", (status,)))
    with pytest.raises(RankerError, match=r"wants a key: .*server=dict\(api_key_env='MY_KEY'\)"):
        make_ranker(server.url).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    monkeypatch.setenv("RAR_TEST_KEY", "wrong")
    with pytest.raises(RankerError, match=r"Check the key in RAR_TEST_KEY \(api_key_env\)"):
        make_ranker(server.url, server={"api_key_env": "RAR_TEST_KEY"}).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_on_the_same_host_is_followed_with_the_request(serve, status):
    moved = ("status", (status, ("Location", "/v2/chat/completions")))
    server = serve(script=lambda number, body: moved if server.paths[-1].startswith("/v1/") else None)
    ranking = make_ranker(server.url, server={"max_concurrency": 1}).rank(crops(3), make_shortlist(3, 4, 8), NAMES)
    assert (ranking.status == RankStatus.OK).all()
    assert server.paths == ["/v1/chat/completions"] + ["/v2/chat/completions"] * 4


def test_a_redirect_to_another_host_is_said_and_not_followed(serve, monkeypatch):
    monkeypatch.setenv("RAR_TEST_KEY", KEY)
    other = serve()
    target = other.url.replace("127.0.0.1", "localhost") + "/chat/completions"
    server = serve(script=lambda number, body: ("status", (307, ("Location", target))))
    with pytest.raises(RankerError, match="redirects to 'http://localhost:.*': give that server as base_url"):
        make_ranker(server.url, server={"api_key_env": "RAR_TEST_KEY"}).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert other.bodies == []


def test_a_circle_of_redirects_ends(serve):
    server = serve(script=lambda number, body: ("status", (307, ("Location", f"/v1/chat/{number}"))))
    with pytest.raises(RankerError, match="HTTP 307"):
        make_ranker(server.url).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


class Proxy:
    """A proxy for plain HTTP: takes requests for any host and hands them to one server."""

    def __init__(self, server):
        self.targets = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.pass_on("GET", b"")

            def do_POST(self):
                self.pass_on("POST", self.rfile.read(int(self.headers["Content-Length"])))

            def pass_on(self, method, body):
                proxy.targets.append(self.path)
                host, port = server.http.server_address[:2]
                connection = HTTPConnection(host, port)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
                connection.request(method, "/" + self.path.split("/", 3)[3], body, headers)
                answer = connection.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_is_the_way_to_other_hosts(serve, monkeypatch, variable):
    """The host has no address here: only the proxy knows it."""
    proxy = Proxy(serve())
    monkeypatch.setenv(variable, proxy.url)
    ranker = make_ranker("http://models.invalid:8000/v1")
    assert ranker.missing_assets() == []
    ranking = ranker.rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert (ranking.status == RankStatus.OK).all()
    assert "http://models.invalid:8000/v1/chat/completions" in proxy.targets
    proxy.http.shutdown()


def test_hosts_of_no_proxy_are_reached_directly(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    (line,) = make_ranker("http://models.invalid:8000/v1").missing_assets()
    assert "the proxy http://127.0.0.1:9 for http://models.invalid:8000/v1 cannot be reached" in line
    assert "NO_PROXY" in line
    monkeypatch.setenv("NO_PROXY", "models.invalid")
    (line,) = make_ranker("http://models.invalid:8000/v1").missing_assets()
    assert "no server at http://models.invalid:8000/v1" in line


def test_a_user_in_the_address_is_not_shown(serve):
    server = serve(script=lambda number, body: ("status", (404,)))
    ranker = make_ranker(server.url.replace("//", "//user:hunter2@"))
    with pytest.raises(RankerError) as caught:
        ranker.rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in json.dumps(dict(ranker.identity()))


# Threads.


def test_eight_threads_share_one_connection(serve):
    server = serve()
    ranker = make_ranker(server.url)
    parts = [(make_shortlist(5, 4, 8, seed=s), crops(5, seed=s)) for s in range(8)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda part: ranker.rank(part[1], part[0], NAMES), parts))
    for (shortlist, _), ranking in zip(parts, got, strict=True):
        assert torch.allclose(ranking.log_probs, torch.log_softmax(0.3 * lengths_of(shortlist), 1), atol=1e-5)
    assert len(server.bodies) == 1 + 40
    assert ranker.report()["asked"] == 40


def test_a_failure_that_repeats_is_said_once(serve, caplog):
    server = serve(script=lambda number, body: ("refuse", "too dark") if number in (2, 3, 4) else None)
    with caplog.at_level(logging.WARNING):
        make_ranker(server.url).rank(crops(8), make_shortlist(8, 4, 8), NAMES)
    assert caplog.text.count("too dark") == 1


def test_one_of_two_servers_dies_and_the_other_goes_on(serve, caplog, monkeypatch):
    """vLLM-shaped servers; one stops listening in the middle of the run, and the other answers from then on."""
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 0.01)
    broken = threading.Event()

    def holds(number, body):
        if number:
            broken.wait(300)

    lasting, dying = serve(script=holds), serve()

    def script(number, body):
        if number == 6:
            broken.set()
        return ("half", None) if broken.is_set() else None

    dying.script = script
    shortlist = make_shortlist(60, 4, 8)
    ranker = make_ranker([lasting.url, dying.url], server={"max_concurrency": 4}, max_retries=1)
    with caplog.at_level(logging.WARNING):
        ranking = ranker.rank(crops(60), shortlist, NAMES)
    assert (ranking.status == RankStatus.OK).all()
    assert torch.allclose(ranking.log_probs, torch.log_softmax(0.3 * lengths_of(shortlist), 1), atol=1e-5)
    assert caplog.text.count(f"{dying.url} is gone") == 1
    assert f"going on with ['{lasting.url}']" in caplog.text
    assert 6 <= len(dying.bodies) < 20
    assert len(lasting.bodies) > 40


def test_one_of_two_servers_wrong_about_its_model_is_named(serve):
    good, wrong = serve(models=("m",)), serve(models=("m2",))
    with pytest.raises(RankerError, match=rf"{wrong.url}, one of 2 servers, is wrong.*did you mean 'm2'.*serves m2"):
        make_ranker([good.url, wrong.url]).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


def test_two_servers_of_which_one_takes_other_requests(serve):
    plain, strict = serve(), serve(refuse=lambda body: "no logprobs here" if body.get("logprobs") else None)
    with pytest.raises(RankerError, match=rf"{strict.url} rejects a request that {plain.url} takes: .*no logprobs"):
        make_ranker([plain.url, strict.url]).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


@pytest.mark.parametrize("ask", ["letter", "generate"])
def test_a_prescribed_form_that_is_ignored_is_found_out_and_left_out(serve, caplog, ask):
    """Such a server answers 200: only an impossible pair of words shows that it does not keep to the form."""
    shortlist = make_shortlist(2, 4, 8)
    for obeys in (True, False):
        server = serve(log_probs=False, obeys=obeys)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ranking = make_ranker(server.url, ask=ask).rank(crops(2), shortlist, NAMES)
        assert (ranking.status == RankStatus.PARTIAL).all()
        sent = {"structured_outputs", "response_format", "grammar", "regex"} & set(server.bodies[-1])
        assert bool(sent) is obeys
        assert ("keeps to no prescribed form of the reply" in caplog.text) is not obeys


@pytest.mark.parametrize("kind", list(CHOICES))
def test_each_servers_own_way_to_prescribe_a_letter_is_found(serve, kind):
    """Without log-probabilities; what a server does not know it ignores."""
    server = serve(log_probs=False, obeys=kind)
    ranking = make_ranker(server.url).rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert (ranking.status == RankStatus.PARTIAL).all()
    wanted = CHOICES[kind](["A", "B", "C", "D"])
    assert {name: server.bodies[-1].get(name) for name in wanted} == wanted
    others = {name for other in CHOICES.values() for name in other("AB")} - set(wanted)
    assert not others & set(server.bodies[-1])


@pytest.mark.parametrize("ask", ["letter", "yesno", "generate"])
@pytest.mark.parametrize("quiet", QUIET)
def test_a_model_that_thinks_first_is_told_not_to(serve, caplog, ask, quiet):
    server, shortlist = serve(thinks=quiet), make_shortlist(2, 4, 8)
    with caplog.at_level(logging.INFO):
        ranking = make_ranker(server.url, ask=ask).rank(crops(2), shortlist, NAMES)
    assert (ranking.status != RankStatus.FALLBACK).all()
    assert quiet.items() <= server.bodies[-1].items()
    assert caplog.text.count("thinks before it answers; switched off by") == 1


def test_a_model_that_always_thinks_says_what_was_wrong(serve, caplog):
    server = serve(thinks={"no such": "field"})
    with caplog.at_level(logging.WARNING):
        ranking = make_ranker(server.url).rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()
    assert "among the first tokens the server lists, [['So', 'Let', 'First']]" in caplog.text
    assert not set(QUIET[0]) & set(server.bodies[-1])


def test_a_configs_own_word_on_thinking_stays(serve):
    server = serve()
    own = {"chat_template_kwargs": {"enable_thinking": True}}
    make_ranker(server.url, extra_body=own).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
    assert server.bodies[-1]["chat_template_kwargs"] == own["chat_template_kwargs"]


def test_all_labels_are_listed_where_a_server_lists_what_is_asked(serve, caplog):
    """26 letters: a list of 20 leaves six with a bound; vLLM lists the tokens it is given."""
    names = [f"{'long ' * (i % 9)}name {i}" for i in range(26)]
    shortlist, pixels = make_shortlist(3, 26, 26), crops(3)
    exact = torch.log_softmax(
        torch.tensor([[0.3 * len(names[i]) for i in row] for row in shortlist.category_ids.tolist()]), 1
    )
    for kind, is_exact in (("lists", True), ("ignores", False), (None, False)):
        server = serve(tokenizes=kind)
        ranking = make_ranker(server.url).rank(pixels, shortlist, names)
        assert torch.allclose(ranking.log_probs, exact, atol=1e-4) is is_exact
        assert ("logprob_token_ids" in server.bodies[-1]) is is_exact
    assert len(serve(tokenizes="lists").bodies) == 0


def test_a_server_that_refuses_the_tokens_asked_for_lists_its_own(serve):
    refuse = lambda body: "logprob_token_ids: extra fields not permitted" if "logprob_token_ids" in body else None  # noqa: E731
    server, shortlist = serve(tokenizes="lists", refuse=refuse), make_shortlist(2, 4, 8)
    ranking = make_ranker(server.url).rank(crops(2), shortlist, NAMES)
    assert torch.allclose(ranking.log_probs, torch.log_softmax(0.3 * lengths_of(shortlist), 1), atol=1e-5)
    assert server.bodies[-1]["top_logprobs"] == 20
    assert "logprob_token_ids" not in server.bodies[-1]


# Every server, in its own words, and what it may do wrong once it has answered well.


def in_error(**fields):
    return {"error": {"type": "invalid_request_error", "param": None, "code": 400, **fields}}


NOT_FOUND = {"detail": "Not Found"}
# What each takes beside the fields of all, its page of a route that is not there, and its form of a refusal.
SERVERS = {
    "vLLM": ({"tokenizes": "lists"}, NOT_FOUND, lambda said: in_error(message=said, type="BadRequestError")),
    "SGLang": ({}, NOT_FOUND, lambda said: {"object": "error", "message": said, "type": "BadRequest", "code": 400}),
    "LMDeploy": ({}, NOT_FOUND, lambda said: {"message": said, "type": "invalid_request_error", "object": "error"}),
    "llama.cpp": ({}, in_error(message="File Not Found", code=404), lambda said: in_error(message=said)),
    "Ollama": ({}, b"404 page not found", lambda said: {"error": said}),
}
every_server = pytest.mark.parametrize("kind", list(SERVERS))
by_list_or_by_text = pytest.mark.parametrize("log_probs", [True, False], ids=["list", "text"])


def started(serve, kind, log_probs=True, **settings):
    """A server of a kind, a ranker that has put a question to it, and the status of its good answers."""
    server = serve(log_probs=log_probs, obeys=kind, models=("m",), **SERVERS[kind][0])
    ranker = make_ranker(server.url, **settings)
    good = RankStatus.OK if log_probs else RankStatus.PARTIAL
    assert ranker.rank(crops(1), make_shortlist(1, 4, 8), NAMES).status.tolist() == [good]
    return server, ranker, good


def once(action):
    """Do this at the first question, and answer the others."""
    left = [action]
    return lambda number, body: left.pop() if left else None


@every_server
@by_list_or_by_text
@pytest.mark.parametrize("action", [("status", (429,)), ("half", None)], ids=["429", "half"])
def test_each_server_is_asked_again(serve, monkeypatch, kind, log_probs, action):
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 0.01)
    server, ranker, good = started(serve, kind, log_probs)
    before, server.script = len(server.bodies), once(action)
    assert ranker.rank(crops(2, 1), make_shortlist(2, 4, 8), NAMES).status.tolist() == [good] * 2
    assert len(server.bodies) == before + 3


@every_server
@by_list_or_by_text
def test_each_server_may_find_a_picture_too_large(serve, caplog, kind, log_probs):
    server, ranker, good = started(serve, kind, log_probs, server={"max_concurrency": 1})
    server.script = once(("page", (413, SERVERS[kind][2]("the picture is too large"))))
    with caplog.at_level(logging.WARNING):
        ranking = ranker.rank(crops(3, 1), make_shortlist(3, 4, 8), NAMES)
    assert ranking.status.tolist() == [RankStatus.FALLBACK, good, good]
    assert "HTTP 413, the picture is too large" in caplog.text


@every_server
def test_each_server_says_that_a_route_is_not_there(serve, kind):
    server = serve(script=lambda number, body: ("page", (404, SERVERS[kind][1])))
    with pytest.raises(RankerError, match="HTTP 404, (?i:.*not found).* does not end in /v1"):
        make_ranker(server.url.removesuffix("/v1")).rank(crops(1), make_shortlist(1, 4, 8), NAMES)


@every_server
@by_list_or_by_text
def test_each_server_may_name_what_was_not_offered(serve, caplog, kind, log_probs):
    server, ranker, _ = started(serve, kind, log_probs)
    server.script = lambda number, body: completion_listing(("X", -0.1), ("Y", -2.5))
    with caplog.at_level(logging.WARNING):
        ranking = ranker.rank(crops(2, 1), make_shortlist(2, 4, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()
    assert torch.equal(ranking.order, torch.arange(4).repeat(2, 1))
    assert re.search("none of .*'X', 'Y'" if log_probs else "no candidate found in the reply 'X'", caplog.text)


@every_server
@pytest.mark.parametrize(
    ("listed", "order", "status"),
    [
        pytest.param([("C", 3.0), ("A", 2.0), ("D", 1.0), ("B", 0.5)], [2, 0, 3, 1], RankStatus.OK, id="sum-above-1"),
        pytest.param([("B", math.nan), ("D", -1.0), ("A", -2.0)], [3, 0, 1, 2], RankStatus.OK, id="one-NaN"),
        pytest.param([("B", math.nan), ("C", math.nan)], [1, 0, 2, 3], RankStatus.PARTIAL, id="NaN-alone"),
        pytest.param([("D", -0.5), ("B", -1.5)], [3, 1, 0, 2], RankStatus.OK, id="fewer"),
    ],
)
def test_each_server_may_list_what_are_no_probabilities_of_all(serve, kind, listed, order, status):
    """What is left of the list decides; without a number in it, the letter that was written."""
    server, ranker, _ = started(serve, kind)
    server.script = lambda number, body: completion_listing(*listed)
    ranking = ranker.rank(crops(1, 1), make_shortlist(1, 4, 8), NAMES)
    assert (ranking.order.tolist(), ranking.status.tolist()) == ([order], [status])
    if status is RankStatus.OK:
        assert torch.allclose(ranking.log_probs.logsumexp(1), torch.zeros(1), atol=1e-5)
        assert ranking.log_probs.isfinite().all()
        assert 0 <= float(ranking.label_mass) <= 1


@every_server
def test_one_of_two_of_each_server_is_wrong_about_its_model(serve, kind):
    good, wrong = (serve(obeys=kind, models=(name,), **SERVERS[kind][0]) for name in ("m", "m-other"))
    with pytest.raises(RankerError, match=rf"{wrong.url}, one of 2 servers, is wrong about its model.*serves m-other"):
        make_ranker([good.url, wrong.url]).rank(crops(1), make_shortlist(1, 4, 8), NAMES)
