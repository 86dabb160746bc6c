"""Decision servers of every form, behaving and misbehaving, on loopback; and rounds, against what they stand for."""

import base64
import io
import json
import logging
import math
import random
import re
import threading

import numpy as np
import pytest
import torch
from loopback import KEY, Server
from PIL import Image

from rar_mmdet.errors import ConfigError, RankerError
from rar_mmdet.rankers import Answer, Decide, DecisionRanker, OpenAIRanker, Question, TransformersRanker
from rar_mmdet.rankers import server as wire
from rar_mmdet.rankers.decision_forms import Decided
from rar_mmdet.rankers.decisions import Rounds, distinct_options
from rar_mmdet.structures import RankStatus, Shortlist
from rar_mmdet.testing import make_shortlist

NAMES = [f"{word} {number}" for word in ("cat", "polar bear", "red car", "bow, long", "nest") for number in range(20)]
FORMS = ["sglang", "openai", "systemone", "systemone-images"]
EVERY_FORM = [*FORMS, "rerank", "sglang-rerank", "score"]
PATHS = {"sglang": "/decisions", "openai": "/decisions", "systemone": "/systemone", "systemone-images": "/systemone"}


def weight(name, picture):
    """How well a name fits a picture, for a server that follows Luce's axiom exactly."""
    red, _, blue = picture.reshape(-1, 3).astype(float).mean(0)
    fits = {"red": (red - blue) / 20, "blue": (blue - red) / 20}
    return math.exp(fits.get(name, sum(map(ord, name)) % 13 / 3 + red / 100))


class RerankServer(Server):
    """A multimodal reranker: p(yes) of a photo and each name by itself."""

    form, spoil, path = "rerank", None, "/rerank"
    query, documents, results, score = "query", "documents", "results", "relevance_score"

    def act(self, handler, body, action):
        try:
            if handler.path != f"/v1{self.path}":
                handler.reply(404, {"detail": "Not Found"})
            else:
                super().act(handler, body, action)
        except (KeyError, TypeError) as error:
            handler.reply(422, {"detail": [{"loc": ["body"], "msg": f"Field required: {error!r}"}]})

    def parts(self, body):
        return body[self.query]["content"]

    def answer(self, results):
        return {"model": "m", self.results: results}

    def completion(self, body, choices=1):
        url = self.parts(body)[0]["image_url"]["url"]
        picture = np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
        odds = [weight(name, picture) / 50 for name in body[self.documents]]
        results = [{"index": i, self.score: value / (1 + value)} for i, value in enumerate(odds)]
        results.sort(key=lambda result: -result[self.score])  # as servers do
        if self.spoil and len(self.bodies) > 2:
            results = self.spoil(results)
        return self.answer(results)


class SGLangRerankServer(RerankServer):
    """SGLang's route of that name: lists without fields around them."""

    form, score = "sglang-rerank", "score"

    def parts(self, body):
        return [part for part in body["query"] if part["type"] == "image_url"]

    def answer(self, results):
        return results


class ScoreServer(RerankServer):
    """vLLM's older route for the same."""

    form, path, query, documents, results, score = "score", "/score", "text_1", "text_2", "data", "score"


class DecisionServer(Server):
    """Takes one form at one path; everything else is what such servers refuse."""

    def __init__(self, form, path=None, spoil=None, most=None, looks=True, decimals=None, **settings):
        self.form, self.path, self.spoil, self.most = form, path or PATHS[form], spoil, most
        self.looks, self.decimals = looks, decimals
        super().__init__(**settings)

    def act(self, handler, body, action):
        try:
            if handler.path != f"/v1{self.path}":
                handler.reply(404, {"detail": "Not Found"})
            elif any(len(names) > (self.most or 1000) for names in self.read(body)[1]):
                handler.reply(400, {"error": {"message": f"at most {self.most} options"}})
            else:
                super().act(handler, body, action)
        except (KeyError, TypeError, IndexError, AssertionError, AttributeError) as error:
            handler.reply(422, {"detail": [{"loc": ["body"], "msg": f"Field required: {error!r}"}]})

    def completion(self, body, choices=1):
        picture, groups = self.read(body)
        answers = []
        for names in groups:
            odds = [weight(name, picture if self.looks else np.zeros((1, 1, 3))) for name in names]
            shares = [value / sum(odds) for value in odds]
            if self.decimals is not None:
                shares = [round(share, self.decimals) for share in shares]
            answers.append(dict(zip(names, shares, strict=True)))
        if self.spoil and len(self.bodies) > 2:  # after both probes
            answers = self.spoil(answers)
        return self.write(answers)

    def read(self, body):
        """The picture and the options of each question."""
        if self.form == "openai":
            (part,) = body["input"][0]["content"]
            assert part["type"] == "input_image"
            url, asked = part["image_url"], [[c["value"] for c in q["choices"]] for q in body["questions"]]
        elif self.form == "sglang":
            (url,), asked = body["images"], [[o["name"] for o in q["options"]] for q in body["questions"]]
        else:
            asked = [list(q["criteria"]) for q in body["questions"].values()]
            if self.form == "systemone":
                assert "images" not in body
                url = body["state"][0]["image_url"]["url"]
            else:
                assert body["state"] == ""
                (url,) = body["images"]
        assert all(len(names) == len({name.casefold() for name in names}) > 1 for names in asked)
        return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))), asked

    def write(self, answers):
        if self.form == "openai":
            listed = [
                {"type": "choice", "name": f"q{i}", "choice": "?", "confidence": 1.0,
                 "probabilities": [{"value": name, "probability": p} for name, p in answer.items()]}
                for i, answer in enumerate(answers)
            ]  # fmt: skip
            return {"model": "m", "answers": listed, "usage": {"input_tokens": 1}}
        mass = {"label_mass": 0.75} if self.form != "systemone" else {}
        named = {f"q{i}": {"type": "choice", "probabilities": answer, **mass} for i, answer in enumerate(answers)}
        return {"model": "m", "answers": named}


RERANKERS = (RerankServer, SGLangRerankServer, ScoreServer)


@pytest.fixture
def start():
    servers = []

    def begin(form, **settings):
        kinds = {kind.form: kind for kind in RERANKERS}
        servers.append(kinds[form](**settings) if form in kinds else DecisionServer(form, **settings))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def make_ranker(url, **settings):
    limits = {"max_fallback_rate": 1.0}
    return DecisionRanker(
        base_url=url, **{"model": "m", "image_size": 8, "timeout": 60.0, "max_retries": 1, "limits": limits, **settings}
    )


def crops(count, seed=0):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def expected(pixels, shortlist):
    pictures = [crop.permute(1, 2, 0).numpy() for crop in pixels]
    rows = [
        [math.log(weight(NAMES[i], picture)) for i in row]
        for row, picture in zip(shortlist.category_ids.tolist(), pictures, strict=True)
    ]
    return torch.log_softmax(torch.tensor(rows, dtype=torch.float64), 1).float()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [2, 5, 60])
def test_every_form_is_found_and_asked(start, form, k):
    server, pixels, shortlist = start(form, most=26 if form != "openai" else 255), crops(4), make_shortlist(4, k, 100)
    ranking = make_ranker(server.url).rank(pixels, shortlist, NAMES)
    torch.testing.assert_close(ranking.log_probs, expected(pixels, shortlist), atol=1e-4, rtol=0)
    assert (ranking.status == RankStatus.OK).all()
    if form in ("sglang", "systemone-images"):
        assert torch.equal(ranking.label_mass, torch.full((4,), 0.75))
        assert torch.equal(ranking.presence, ranking.label_mass)
    else:
        assert ranking.label_mass is None
        assert ranking.presence is None


def test_the_form_is_found_once_and_said(start, caplog):
    server = start("systemone", path="/decisions")  # as Perplexity and OpenRouter have it
    ranker = make_ranker(server.url)
    with caplog.at_level(logging.INFO):
        for seed in range(3):
            ranker.rank(crops(2, seed), make_shortlist(2, 5, 100), NAMES)
    asked = [body for path, body in zip(server.paths, server.bodies, strict=True) if "state" in body]
    assert len(asked) == 1 + 2 + 3 * 2  # /systemone is not there; two squares; six crops
    assert "takes the form 'systemone' at /decisions" in caplog.text


def test_a_form_that_is_named_is_not_looked_for(start):
    server = start("openai")
    make_ranker(server.url, form="openai").rank(crops(1), make_shortlist(1, 5, 100), NAMES)
    assert len(server.bodies) == 2 + 1


def test_one_request_for_a_question_and_one_more_for_a_second_round(start):
    server = start("sglang", most=26)
    ranker = make_ranker(server.url, form="sglang")
    ranker.rank(crops(1), make_shortlist(1, 26, 100), NAMES)
    assert [len(body["questions"]) for body in server.bodies[2:]] == [1]
    ranker.rank(crops(1), make_shortlist(1, 60, 100), NAMES)
    assert [len(body["questions"]) for body in server.bodies[3:]] == [3, 1]
    assert [len(q["options"]) for q in server.bodies[3]["questions"]] == [20, 20, 20]


def test_probabilities_of_two_digits_leave_nothing_impossible(start):
    server, pixels, shortlist = start("openai", decimals=2), crops(3), make_shortlist(3, 5, 100)
    ranking = make_ranker(server.url).rank(pixels, shortlist, NAMES)
    assert ranking.log_probs.isfinite().all()
    assert torch.equal(ranking.order[:, 0], expected(pixels, shortlist).argmax(1))


def test_names_that_repeat_or_differ_in_case_are_offered_once_each(start):
    assert distinct_options(["b", "B", "b", "B (2)"]) == {"B": "B", "B (2)": "B (2)", "b": "b (3)"}
    server = start("sglang")
    ranker = make_ranker(server.url)
    shortlist = Shortlist(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    ranking = ranker.rank(crops(1), shortlist, ["bow", "tie", "bow", "Bow"])
    assert ranking.log_probs[0, 0] == ranking.log_probs[0, 2]
    assert [o["name"] for o in server.bodies[-1]["questions"][0]["options"]] == ["Bow", "bow (2)", "tie"]
    before = len(server.bodies)
    alike = ranker.rank(crops(1), shortlist, ["bow"] * 4)
    assert len(server.bodies) == before  # of one name nothing can be asked
    assert alike.order.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("kind", RERANKERS)
def test_a_reranker_is_asked_like_a_decision_server(kind):
    server, pixels, shortlist = kind(), crops(4), make_shortlist(4, 60, 100)
    try:
        ranking = make_ranker(server.url).rank(pixels, shortlist, NAMES)
        torch.testing.assert_close(ranking.log_probs, expected(pixels, shortlist), atol=1e-4, rtol=0)
        pictures = [crop.permute(1, 2, 0).numpy() for crop in pixels]
        for row, picture in enumerate(pictures):
            odds = [weight(NAMES[i], picture) / 50 for i in shortlist.category_ids[row].tolist()]
            absent = math.prod(1 / (1 + value) for value in odds)
            assert float(ranking.presence[row]) == pytest.approx(1 - absent, abs=1e-5)
        documents = server.bodies[-1][kind.documents]
        assert len(documents) == 60
    finally:
        server.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda r, f: r[:-1], "5 names were sent, 4 are scored", id="fewer"),
        pytest.param(lambda r, f: [r[0], *r[:-1]], "5 are scored, or one of them twice", id="twice"),
        pytest.param(lambda r, f: [{**r[0], "index": 7}, *r[1:]], "5 are scored, or one of them twice", id="unknown"),
        pytest.param(lambda r, f: [{**x, f: 7.5} for x in r], "score is 7.5, expected a number in", id="logits"),
        pytest.param(lambda r, f: [{**x, f: math.nan} for x in r], "score is nan, expected a number in", id="nan"),
        pytest.param(lambda r, f: [{"index": x["index"]} for x in r], "expected answers with probabilities", id="none"),
    ],
)
@pytest.mark.parametrize("kind", RERANKERS)
def test_rerankers_whose_scores_are_none(start, caplog, kind, spoil, message):
    server = start(kind.form)
    server.spoil = lambda results: spoil(results, kind.score)
    with caplog.at_level(logging.WARNING):
        ranking = make_ranker(server.url, form=kind.form).rank(crops(1), make_shortlist(1, 5, 100), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()
    assert message in caplog.text


# Rounds.


@pytest.mark.parametrize(("k", "most"), [(3, 2), (7, 2), (26, 26), (27, 26), (60, 5), (700, 26)])
def test_rounds_are_exact_where_lucess_axiom_holds_and_never_depend_on_the_order(k, most):
    names = [f"name {i}" for i in range(k)]
    odds = {name: random.Random(name).expovariate(1.0) + 1e-3 for name in names}
    found = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(names, k)
        rounds, asked = Rounds(shuffled, most), 0
        while not rounds.done:
            assert all(2 <= len(group) <= most for group in rounds.groups)
            totals = [sum(odds[name] for name in group) for group in rounds.groups]
            said = [
                Decided({name: odds[name] / total for name in group}, 0.5)
                for group, total in zip(rounds.groups, totals, strict=True)
            ]
            asked += len(said)
            rounds.take(said)
        answer = rounds.answer(names)
        found.append(answer)
        assert asked <= 2 * k / most + 2 * math.log(k, 2)
    assert found[0] == found[1] == found[2]
    wanted = torch.tensor([odds[name] for name in names], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(found[0].scores[0], dtype=torch.float64).exp(), wanted / wanted.sum())
    assert found[0].masses == (0.5,)


@pytest.mark.parametrize("form", FORMS)
def test_more_candidates_than_a_server_takes_get_the_same_answer_in_any_order(start, form):
    """Three groups and their winners; a model that follows no axiom, so that other groups would give other odds."""
    server, pixels = start(form, most=26, spoil=lambda answers: [_uneven(answer) for answer in answers]), crops(1)
    ids = torch.randperm(100, generator=torch.Generator().manual_seed(1))[:60]
    found = []
    for seed in range(3):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        shortlist = Shortlist(ids[order][None], torch.full((1, 60), 1 / 60))
        ranking = make_ranker(server.url, form=form, max_options=26).rank(pixels, shortlist, NAMES)
        found.append(dict(zip(ids[order].tolist(), ranking.log_probs[0].tolist(), strict=True)))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].values())) > 10


def _uneven(answer):
    """Shares that depend on who else is offered, but not on the order."""
    sharp = {name: p ** (1 + len(answer) / 20) for name, p in answer.items()}
    return {name: p / sum(sharp.values()) for name, p in sharp.items()}


def test_ties_are_broken_by_name_and_not_by_order():
    for names in (["a", "b", "c"], ["c", "a", "b"]):
        rounds = Rounds(names, 2)
        while not rounds.done:
            rounds.take([Decided(dict.fromkeys(group, 0.5)) for group in rounds.groups])
        assert rounds.answer(["a", "b", "c"]).masses == (None,)
        assert rounds.open == ["a"]


# The way to ask.


def test_decide_reads_shared_out_probabilities():
    question = Question(torch.zeros(3, 4, 4, dtype=torch.uint8), ("cat", "dog"))
    assert Decide().texts(question) == ["What is the object in the image?"]
    reading = Decide().read(Answer(scores=((-2.0, -0.1),)), question)
    assert (reading.order, reading.label_mass) == ((1, 0), None)  # shared out: the scores say nothing of the mass
    assert Decide().read(Answer(scores=((-2.0, -0.1),), masses=(0.4,)), question).presence == 0.4
    assert Decide().target(question, 1) == ["dog"]
    assert Decide().read(Answer(), question).status is RankStatus.FALLBACK
    with pytest.raises(ConfigError, match="gives the candidates as options, not in its prompt"):
        Decide(prompt="choose")


def test_who_asks_whom(start):
    with pytest.raises(ConfigError, match="DecisionRanker asks by 'decide' alone, got ask='letter'"):
        make_ranker("http://127.0.0.1:9/v1", ask="letter")
    with pytest.raises(ConfigError, match="OpenAIRanker cannot ask='decide'"):
        OpenAIRanker(base_url="http://127.0.0.1:9/v1", model="m", ask="decide")
    with pytest.raises(ConfigError, match="TransformersRanker cannot ask='decide'"):
        TransformersRanker(model="m", ask="decide")
    with pytest.raises(ConfigError, match="form must be one of sglang, openai, .*got 'jev'"):
        make_ranker("http://127.0.0.1:9/v1", form="jev")
    with pytest.raises(ConfigError, match="max_options must be at least 2"):
        make_ranker("http://127.0.0.1:9/v1", max_options=1)


# Servers that misbehave.


def foreign(answers):
    return [{**dict(list(answer.items())[1:]), "unicorn": next(iter(answer.values()))} for answer in answers]


def fewer(answers):
    return [dict(list(answer.items())[1:]) for answer in answers]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(foreign, "the option 'unicorn' was not asked about; asked were", id="unknown-option"),
        pytest.param(fewer, "4 of 5 options have a probability; '.*' has none", id="fewer-options"),
        pytest.param(lambda a: [{n: p / 2 for n, p in x.items()} for x in a], "sum to 0.500, expected 1", id="sum"),
        pytest.param(lambda a: [dict.fromkeys(x, math.nan) for x in a], "is nan, expected a number in", id="nan"),
        pytest.param(lambda a: [dict.fromkeys(x, "high") for x in a], "is 'high', expected a number", id="text"),
        pytest.param(lambda a: [dict.fromkeys(x, -0.5) for x in a], "is -0.5, expected a number in", id="negative"),
        pytest.param(lambda a: a[:-1], "1 questions were asked and 0 are answered", id="no-answer"),
    ],
)
def test_answers_that_are_none(start, caplog, form, spoil, message):
    server = start(form, spoil=spoil)
    ranker = make_ranker(server.url, form=form)
    with caplog.at_level(logging.WARNING):
        ranking = ranker.rank(crops(2), make_shortlist(2, 5, 100), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()
    assert torch.equal(ranking.order, torch.arange(5).repeat(2, 1))
    assert re.search(message, caplog.text)
    server.spoil = None
    assert (ranker.rank(crops(2), make_shortlist(2, 5, 100), NAMES).status == RankStatus.OK).all()  # asked again


def test_a_model_that_declines(start, caplog):
    refusal = {"answers": [{"type": "refusal", "name": "q0"}]}
    server = start("openai", script=lambda number, body: ("raw", refusal) if number > 1 else None)
    with caplog.at_level(logging.WARNING):
        ranking = make_ranker(server.url, form="openai").rank(crops(1), make_shortlist(1, 5, 100), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()
    assert "the model declines to answer" in caplog.text


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize(
    "action",
    [
        pytest.param(("status", (429,)), id="429"),
        pytest.param(("half", None), id="half-a-body"),
        pytest.param(("raw", b"<html>proxy error</html>"), id="html"),
        pytest.param(("status", (503,)), id="503"),
    ],
)
def test_what_passes_is_tried_again(start, monkeypatch, action, form):
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 0.02)
    server = start(form, script=lambda number, body: action if number == 2 else None)
    ranking = make_ranker(server.url, form=form).rank(crops(1), make_shortlist(1, 5, 100), NAMES)
    assert (ranking.status == RankStatus.OK).all()


@pytest.mark.parametrize("form", EVERY_FORM)
def test_a_picture_that_is_too_large_costs_its_region_alone(start, caplog, form):
    too_large = ("status", (413,))
    server = start(form, script=lambda number, body: too_large if number == 2 else None)
    with caplog.at_level(logging.WARNING):
        ranking = make_ranker(server.url, form=form).rank(crops(3), make_shortlist(3, 5, 100), NAMES)
    assert sorted(ranking.status.tolist()) == [0, 0, int(RankStatus.FALLBACK)]
    assert "HTTP 413" in caplog.text


@pytest.mark.parametrize("form", EVERY_FORM)
def test_a_route_that_is_not_there_is_named(start, form):
    other = start("sglang", path="/elsewhere")
    with pytest.raises(
        RankerError, match=rf"takes no form of a decision.*{form} at {other.url}/.*: .*HTTP 404, Not Found"
    ):
        make_ranker(other.url, form=form).rank(crops(1), make_shortlist(1, 5, 100), NAMES)


def test_a_server_that_takes_no_form_is_told_what_was_tried(serve):
    chat = serve(models=("qwen-vl",), script=lambda number, body: ("status", (404,)))
    with pytest.raises(
        RankerError, match=r"takes no form of a decision.*It serves qwen-vl.*sglang at .*/decisions.*404"
    ):
        make_ranker(chat.url).rank(crops(1), make_shortlist(1, 5, 100), NAMES)


def test_a_server_that_does_not_look_is_refused(start):
    blind = start("systemone", looks=False)
    with pytest.raises(
        RankerError, match="a red and a blue square get the same answer .* the picture is not looked at"
    ):
        make_ranker(blind.url).rank(crops(1), make_shortlist(1, 5, 100), NAMES)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        pytest.param({"answers": {}}, "1 questions were asked and 0 are answered", id="empty"),
        pytest.param({"error": {"message": "no credit"}}, "expected answers with probabilities.*no credit", id="error"),
        pytest.param({"answers": {"q0": {"probabilities": [1]}}}, "probabilities are list", id="a-list"),
    ],
)  # fmt: skip
def test_first_answers_that_are_none_stop_the_run(start, reply, message):
    server = start("systemone", script=lambda number, body: ("raw", reply))
    with pytest.raises(RankerError, match=message):
        make_ranker(server.url, form="systemone").rank(crops(1), make_shortlist(1, 5, 100), NAMES)


def test_a_key_that_is_wanted_is_said(start):
    server = start("sglang", script=lambda number, body: ("status", (401,)))
    with pytest.raises(RankerError, match=r"wants a key: .*server=dict\(api_key_env='MY_KEY'\)"):
        make_ranker(server.url, form="sglang").rank(crops(1), make_shortlist(1, 5, 100), NAMES)


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("status", [401, 413, 429])
def test_the_key_is_sent_and_stands_in_no_line_of_the_log(start, monkeypatch, caplog, tmp_path, form, status):
    """Of any logger, at any level; the server repeats the key in its refusal."""
    monkeypatch.setenv("RAR_TEST_KEY", KEY)
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(wire, "_LONG_PAUSE", 0.0)
    server = start(form, script=lambda number, body: ("status", (status,)) if number > 1 else None)
    settings = {"form": form, "cache": tmp_path / "answers.sqlite", "server": {"api_key_env": "RAR_TEST_KEY"}}
    ranker, raised = make_ranker(server.url, **settings), ""
    with caplog.at_level(logging.DEBUG):
        try:
            ranker.rank(crops(2), make_shortlist(2, 5, 100), NAMES)
        except RankerError as error:
            raised = str(error)
    assert bool(raised) is (status == 401)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert "bad key <key>" in caplog.text + raised
    assert KEY not in caplog.text + raised + json.dumps(ranker.report())
    assert not [file for file in tmp_path.iterdir() if KEY.encode() in file.read_bytes()]


def test_answers_are_kept_as_they_come(start, tmp_path):
    """A server that goes away: what it has said is not asked again."""
    server = start("sglang", script=lambda number, body: ("status", (500,)) if 5 < number < 50 else None)
    settings = {"form": "sglang", "cache": tmp_path / "answers.sqlite", "max_retries": 0}
    shortlist = make_shortlist(30, 5, 100)
    with pytest.raises(RankerError, match="in a row"):
        make_ranker(server.url, server={"max_concurrency": 1}, **settings).rank(crops(30), shortlist, NAMES)
    server.script = None
    ranker = make_ranker(server.url, **settings)
    assert (ranker.rank(crops(30), shortlist, NAMES).status == RankStatus.OK).all()
    assert (ranker.report()["cached"], ranker.report()["asked"]) == (4, 26)


# Several servers of one model.


def test_several_servers_share_the_requests(start):
    eight = threading.Barrier(8)  # so many are on the way before one is answered, whatever the threads are up to

    def waits(number, body):
        if number > 1:  # after both probes
            eight.wait(300)

    servers = [start("sglang", script=waits) for _ in range(2)]
    pixels, shortlist = crops(40), make_shortlist(40, 5, 100)
    ranker = make_ranker([server.url for server in servers], server={"max_concurrency": 8}, timeout=300.0)
    ranking = ranker.rank(pixels, shortlist, NAMES)
    torch.testing.assert_close(ranking.log_probs, expected(pixels, shortlist), atol=1e-4, rtol=0)
    assert [len(server.bodies) - 2 for server in servers] == [20, 20]


@pytest.mark.parametrize("form", EVERY_FORM)
def test_one_of_two_servers_wrong_about_its_model_is_named(start, form):
    good, wrong = start(form, models=("m",)), start(form, models=("other-model",))
    with pytest.raises(RankerError, match=rf"{wrong.url}, one of 2 servers, is wrong.*It serves other-model"):
        make_ranker([good.url, wrong.url]).rank(crops(1), make_shortlist(1, 5, 100), NAMES)


@pytest.mark.parametrize(("form", "another"), zip(EVERY_FORM, (*EVERY_FORM[1:], EVERY_FORM[0]), strict=True))
def test_one_of_two_servers_of_another_form_is_named(start, form, another):
    good, other = start(form), start(another)
    with pytest.raises(RankerError, match=rf"{form} at {other.url}/"):
        make_ranker([good.url, other.url], form=form).rank(crops(1), make_shortlist(1, 5, 100), NAMES)


def test_addresses_are_different():
    with pytest.raises(ConfigError, match="a list of different ones"):
        make_ranker(["http://127.0.0.1:9/v1"] * 2)
    assert (
        json.dumps(dict(make_ranker(["http://b:1/v1", "http://a:1/v1"]).identity())).count("http://a:1/v1, http://b")
        == 1
    )
