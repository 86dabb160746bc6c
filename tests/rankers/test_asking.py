import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rar_mmdet import registry
from rar_mmdet.components import build_component
from rar_mmdet.errors import ConfigError, RankerError
from rar_mmdet.fusion import LogLikFusion, PermuteFusion, RankFusion
from rar_mmdet.rankers import (
    Answer,
    AskingRanker,
    IdentityRanker,
    Letter,
    Likelihood,
    Ranker,
    ScriptedRanker,
    TransformersRanker,
    YesNo,
    report_table,
)
from rar_mmdet.structures import Ranking, RankStatus, Shortlist
from rar_mmdet.testing import make_shortlist

NAMES = ["cat", "dog", "red car", "bird's nest", "hot dog", "polar bear", "{k}", "bow, long"]


class NoisyRanker(AskingRanker):
    """Scores depend a little on who shares the batch, as floating point arithmetic makes real ones do."""

    def __init__(self, *, ask="likelihood", batch_size=3, pause=0.0, weights="w0", limits=None, cache=None):
        super().__init__(ask=ask, limits=limits or {"max_fallback_rate": 1.0}, cache=cache)
        self.batch_size, self.pause, self.weights, self.crop_size = batch_size, pause, weights, 4
        self.batches = []
        self.reply = None

    def identity(self):
        return {"id": "noisy", "weights": self.weights}

    def answer(self, questions):
        for start in range(0, len(questions), self.batch_size):
            batch = questions[start : start + self.batch_size]
            self.batches.append(len(batch))
            time.sleep(self.pause)
            noise = sum(int(q.crop.sum()) for q in batch) * 1e-6
            yield {start + i: self.one(q, i * 1e-5 + noise) for i, q in enumerate(batch)}

    def one(self, question, noise):
        if self.ask.wants == "text":
            return Answer(reply=self.reply if self.reply is not None else str(sorted(question.candidates)))
        base = float(question.crop.float().mean())
        scores = [math.sin(base + 7 * sum(map(ord, name))) * 3 + noise for name in question.candidates]
        if self.ask.name == "letter":
            return Answer(scores=tuple(tuple(scores[c] for c in s) for s in self.ask.shifts(len(scores))))
        if self.ask.name == "yesno":
            return Answer(scores=tuple((score, -score) for score in scores))
        return Answer(scores=(tuple(scores),), lengths=tuple(len(name) for name in question.candidates))


def crops(count, seed=0):
    return torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ask", ["likelihood", "letter", "yesno", "generate"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_always_a_permutation_with_normalised_log_probs(ask, count):
    ranking = NoisyRanker(ask=ask).rank(crops(count), make_shortlist(count, 5, 8), NAMES)
    assert torch.equal(ranking.order.sort(1).values, torch.arange(5).repeat(count, 1))
    assert (ranking.status == RankStatus.OK).all()
    if ask == "generate" or count == 0:
        assert ranking.log_probs is None
    else:
        assert torch.allclose(ranking.log_probs.logsumexp(1), torch.zeros(count), atol=1e-5)
        best_first = ranking.log_probs.gather(1, ranking.order)
        assert (best_first.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("ask", ["likelihood", "yesno", "letter"])
def test_permuting_the_shortlist_permutes_the_answer(ask):
    shortlist, pixels = make_shortlist(6, 5, 8), crops(6)
    permutation = torch.tensor([3, 0, 4, 1, 2])
    shuffled = Shortlist(shortlist.category_ids[:, permutation], shortlist.probs)
    one = NoisyRanker(ask=ask).rank(pixels, shortlist, NAMES).log_probs
    other = NoisyRanker(ask=ask).rank(pixels, shuffled, NAMES).log_probs
    assert torch.allclose(one[:, permutation], other, atol=1e-6)
    if ask != "letter":  # letters are shown in retrieval order
        assert torch.equal(one[:, permutation], other)


def test_what_each_order_of_the_prompt_prefers_is_kept():
    class Stubborn(NoisyRanker):
        def one(self, question, noise):
            return Answer(scores=((0.0, 2.0, 1.0),) * len(self.ask.shifts(3)))  # always the letter B

    ranking = Stubborn(ask=Letter()).rank(crops(2), make_shortlist(2, 3, 8), NAMES)
    assert ranking.preferred.tolist() == [[1, 2, 0]] * 2
    assert Stubborn(ask=Letter(num_shifts=1)).rank(crops(2), make_shortlist(2, 3, 8), NAMES).preferred is None
    assert NoisyRanker(ask="yesno").rank(crops(2), make_shortlist(2, 3, 8), NAMES).preferred is None


def test_a_region_alone_gets_what_it_gets_among_others():
    shortlist, ask = make_shortlist(8, 4, 8), torch.tensor([True, False] * 4)
    everyone = NoisyRanker(batch_size=1).rank(crops(8), shortlist, NAMES)
    alone = NoisyRanker(batch_size=1).rank(crops(8)[ask], shortlist[ask], NAMES)
    assert torch.equal(everyone.log_probs[ask], alone.log_probs)
    spread = alone.spread(ask)
    assert (spread.status[~ask] == RankStatus.SKIPPED).all()
    assert torch.equal(spread.order[~ask], torch.arange(4).repeat(4, 1))
    assert torch.allclose(spread.log_probs[~ask].exp(), torch.full((4, 4), 0.25))
    assert torch.equal(spread[ask].order, alone.order)


def test_decisive_margin_skips_and_counts():
    shortlist = make_shortlist(20, 4, 8)
    margin = shortlist.probs[:, 0] - shortlist.probs[:, 1]
    threshold = float(margin.median())
    ranker = NoisyRanker(limits={"decisive_margin": threshold})
    ranking = ranker.rank(crops(20), shortlist, NAMES)
    assert torch.equal(ranking.status == RankStatus.SKIPPED, margin >= threshold)
    report = ranker.report()
    assert report["decisive"] == report["skipped"] == int((margin >= threshold).sum())
    assert report["asked"] == 20 - report["decisive"]


def test_one_candidate_needs_no_question():
    ranker = NoisyRanker()
    assert ranker.rank(crops(3), make_shortlist(3, 1, 8), NAMES).status.tolist() == [RankStatus.SKIPPED] * 3
    assert ranker.report()["asked"] == 0


def test_equal_questions_are_asked_once():
    shortlist = make_shortlist(2, 4, 8)
    twice = Shortlist(shortlist.category_ids[[0, 1, 0, 0]], shortlist.probs[[0, 1, 0, 0]])
    pixels = crops(2)[[0, 1, 0, 0]]
    ranker = NoisyRanker()
    ranking = ranker.rank(pixels, twice, NAMES)
    assert torch.equal(ranking.log_probs[0], ranking.log_probs[2])
    report = ranker.report()
    assert (report["asked"], report["deduped"], report["cached"]) == (2, 2, 0)
    ranker.rank(pixels, twice, NAMES)
    assert ranker.report()["asked"] == 2
    other = pixels.clone()
    other[2, 0, 0, 0] ^= 1
    ranker.rank(other, twice, NAMES)
    assert ranker.report()["asked"] == 3


@pytest.mark.parametrize("prompt", ["name", "choose"])
def test_pmi_subtracts_the_blank_crop_and_asks_about_each_name_once(prompt):
    shortlist, pixels = make_shortlist(4, 3, 4), crops(4)
    ranker = NoisyRanker(ask=Likelihood(score="pmi", prompt=prompt), batch_size=1)
    got = ranker.rank(pixels, shortlist, NAMES).log_probs
    blank = torch.full_like(pixels, 127)
    plain = NoisyRanker(batch_size=1)
    difference = plain.rank(pixels, shortlist, NAMES).log_probs - plain.rank(blank, shortlist, NAMES).log_probs
    assert torch.allclose(got, torch.log_softmax(difference, 1), atol=1e-3)  # the noise of this fake
    assert ranker.report()["null_asked"] <= 4


def test_kept_answers_are_used_again_bit_for_bit(tmp_path):
    path = tmp_path / "answers.sqlite"
    first = NoisyRanker(cache=path).rank(crops(9), make_shortlist(9, 5, 8), NAMES)
    again = NoisyRanker(cache=path)
    assert torch.equal(again.rank(crops(9), make_shortlist(9, 5, 8), NAMES).log_probs, first.log_probs)
    assert (again.report()["asked"], again.report()["cached"]) == (0, 9)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "w1"},
        {"ask": "yesno"},
        {"ask": Likelihood(prompt="name")},
        {"ask": Letter(num_shifts=1)},
    ],
)
def test_another_model_or_prompt_is_another_question(tmp_path, change):
    path = tmp_path / "answers.sqlite"
    NoisyRanker(cache=path).rank(crops(3), make_shortlist(3, 5, 8), NAMES)
    other = NoisyRanker(cache=path, **change)
    other.rank(crops(3), make_shortlist(3, 5, 8), NAMES)
    assert other.report()["asked"] == 3


def test_another_reading_is_not_another_question(tmp_path):
    path = tmp_path / "answers.sqlite"
    NoisyRanker(cache=path).rank(crops(3), make_shortlist(3, 5, 8), NAMES)
    other = NoisyRanker(cache=path, ask=Likelihood(score="mean"))
    other.rank(crops(3), make_shortlist(3, 5, 8), NAMES)
    assert other.report()["asked"] == 0


def _stream(ranker):
    """A run of eight calls, with some questions that come back."""
    results = []
    for step in range(8):
        shortlist, pixels = make_shortlist(7, 4, 8, seed=step % 5), crops(7, seed=step % 5)
        results.append(ranker.rank(pixels, shortlist, NAMES).log_probs)
    return torch.cat(results)


def _run_stream(path):
    _stream(NoisyRanker(cache=path, pause=0.004))


def test_killed_at_random_points_and_resumed_gives_the_same_bits(tmp_path, one_thread):
    undisturbed = _stream(NoisyRanker(cache=tmp_path / "calm.sqlite"))
    rng, context = random.Random(1), multiprocessing.get_context("fork")
    for trial in range(3):
        path = tmp_path / f"killed{trial}.sqlite"
        for _ in range(3):
            run = context.Process(target=_run_stream, args=(path,))
            run.start()
            time.sleep(rng.uniform(0.01, 0.12))
            os.kill(run.pid, signal.SIGKILL)
            run.join()
        last = NoisyRanker(cache=path)
        assert torch.equal(_stream(last), undisturbed)
        assert last.report()["asked"] + last.report()["cached"] + last.report()["deduped"] == 56
    assert not list(tmp_path.glob("*.damaged-*"))


def test_two_processes_share_one_cache(tmp_path, one_thread):
    path, context = tmp_path / "shared.sqlite", multiprocessing.get_context("fork")
    runs = [context.Process(target=_run_stream, args=(path,)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(300)
    assert [run.exitcode for run in runs] == [0, 0]
    last = NoisyRanker(cache=path)
    _stream(last)
    assert last.report()["asked"] == 0


def test_unanswered_and_unreadable_regions_fall_back():
    ranker = NoisyRanker(ask="generate")
    ranker.reply = "I cannot help."
    ranking = ranker.rank(crops(3), make_shortlist(3, 4, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()
    assert torch.equal(ranking.order, torch.arange(4).repeat(3, 1))
    ranker = NoisyRanker()
    ranker.answer = lambda questions: iter([{0: Answer(scores=((float("nan"),) * 4,), lengths=(1,) * 4)}])
    ranking = ranker.rank(crops(3), make_shortlist(3, 4, 8), NAMES)
    assert (ranking.status == RankStatus.FALLBACK).all()


def test_too_many_fallbacks_fail_the_run(caplog):
    ranker = NoisyRanker(ask="generate", limits={"max_fallback_rate": 0.2})
    ranker.reply = "no idea"
    with caplog.at_level(logging.WARNING):
        ranker.rank(crops(5), make_shortlist(5, 4, 8), NAMES)
    assert caplog.text.count("no candidate found in the reply 'no idea' to [") == 3  # a few say enough
    assert ranker.report()["fallback"] == 5
    with pytest.raises(RankerError, match="5 of 5 regions got no usable answer, more than max_fallback_rate=0.2"):
        ranker.judge()
    ranker.judge({"ok": 20, "partial": 5, "fallback": 5})  # of all processes
    with pytest.raises(RankerError, match="105 of 105 regions"):
        ranker.rank(crops(100), make_shortlist(100, 4, 8), NAMES)


def test_report_is_json_and_adds_up():
    ranker = NoisyRanker(limits={"decisive_margin": 0.3})
    ranker.rank(crops(30), make_shortlist(30, 4, 8), NAMES)
    report = json.loads(json.dumps(ranker.report()))
    assert report["ok"] + report["partial"] + report["fallback"] + report["skipped"] == report["regions"] == 30
    assert report["asked"] + report["cached"] + report["deduped"] + report["skipped"] == 30
    assert report["seconds"] >= 0
    assert report["model"]["id"] == "noisy"


class Mixed(NoisyRanker):
    """A server that stops to give log-probabilities: later answers are bare choices."""

    def one(self, question, noise):
        return Answer(reply="['dog']") if "dog" in question.candidates else super().one(question, noise)


def test_a_region_is_fused_the_same_way_whoever_its_neighbours_are():
    shortlist = Shortlist(torch.tensor([[0, 1, 2], [0, 2, 3]]), torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))
    together = Mixed(batch_size=1).rank(crops(2), shortlist, NAMES)
    assert together.order[0].tolist() == [1, 0, 2]
    assert together.has_log_probs.tolist() == [False, True]
    for fusion in (LogLikFusion(), LogLikFusion(alpha=0.0), LogLikFusion(alpha=1.0), RankFusion(), PermuteFusion()):
        fused = fusion(shortlist, together)
        assert fused.isfinite().all()
        for row in range(2):
            alone = Mixed(batch_size=1).rank(crops(2)[row : row + 1], shortlist[row : row + 1], NAMES)
            assert torch.equal(fusion(shortlist[row : row + 1], alone)[0], fused[row])


def test_what_the_model_said_stays_with_its_region():
    shortlist = Shortlist(torch.tensor([[0, 1, 2], [0, 2, 3]]), torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))
    ranking = Mixed().rank(crops(2), shortlist, NAMES)
    assert ranking.replies == ("['dog']", None)
    assert ranking.label_mass[0].isnan()  # a text
    assert 0 <= float(ranking.label_mass[1]) <= 1
    ranking = NoisyRanker(ask=YesNo()).rank(crops(2), shortlist, NAMES)
    assert ranking.replies is None
    assert ((ranking.label_mass > 0) & (ranking.label_mass <= 1)).all()
    assert ((ranking.presence > 0) & (ranking.presence <= 1)).all()
    assert NoisyRanker(ask="generate").rank(crops(2), shortlist, NAMES).presence is None


@pytest.mark.parametrize("ask", ["likelihood", "letter", "yesno", "generate"])
@pytest.mark.parametrize("kept", [True, False])
def test_eight_threads_get_what_one_gets(tmp_path, ask, kept):
    """Each thread asks about its own regions, and about some that all ask about."""
    parts = [(make_shortlist(6, 4, 8, seed=s % 5), crops(6, seed=s % 5)) for s in range(8)]
    one = NoisyRanker(ask=ask, batch_size=1)
    want = [one.rank(pixels, shortlist, NAMES) for shortlist, pixels in parts]
    ranker = NoisyRanker(ask=ask, batch_size=1, pause=0.001, cache=tmp_path / "a.sqlite" if kept else None)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda part: ranker.rank(part[1], part[0], NAMES), parts))
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine.order, theirs.order)
        assert torch.equal(mine.status, theirs.status)
        assert ask == "generate" or torch.equal(mine.log_probs, theirs.log_probs)
    report = ranker.report()
    assert report["regions"] == report["ok"] == report["asked"] + report["cached"] + report["deduped"] == 48


def test_the_first_answer_kept_counts_for_all(tmp_path):
    """Two processes that ask the same question at the same moment end with the same bits."""
    shortlist, pixels = make_shortlist(3, 4, 8), crops(3)
    first, second = (NoisyRanker(cache=tmp_path / "a.sqlite", batch_size=size) for size in (3, 1))
    second._resolve([])  # opened before the other has written
    asked = second.answer
    late = []
    second.answer = lambda questions: late.append(first.rank(pixels, shortlist, NAMES).log_probs) or asked(questions)
    assert torch.equal(second.rank(pixels, shortlist, NAMES).log_probs, late[0])


def test_another_machine_goes_on_with_all_answers(tmp_path, monkeypatch):
    shortlist, pixels = make_shortlist(9, 5, 8), crops(9)
    whole = NoisyRanker().rank(pixels, shortlist, NAMES)
    monkeypatch.setattr("socket.gethostname", lambda: "node-1")
    NoisyRanker(cache=tmp_path / "a.sqlite").rank(pixels[:6], shortlist[:6], NAMES)
    monkeypatch.setattr("socket.gethostname", lambda: "node-2")
    second = NoisyRanker(cache=tmp_path / "a.sqlite")
    assert torch.equal(second.rank(pixels, shortlist, NAMES).log_probs, whole.log_probs)
    assert (second.report()["asked"], second.report()["cached"]) == (3, 6)
    assert {file.name for file in tmp_path.glob("*.sqlite")} == {"a.node-1.sqlite", "a.node-2.sqlite"}


@pytest.mark.parametrize("ask", [Letter(num_shifts=1), Letter()], ids=str)
def test_a_letter_that_never_changes_is_said_once(caplog, ask):
    ranker = NoisyRanker(ask=ask)
    shifts = len(ask.shifts(3))
    ranker.one = lambda question, noise: Answer(scores=((-0.1, -3.0, -4.0),) * shifts)
    with caplog.at_level(logging.WARNING):
        ranker.rank(crops(29 // shifts), make_shortlist(29 // shifts, 3, 8), NAMES)
        assert not caplog.text
        for seed in range(1, 4):
            ranker.rank(crops(9, seed), make_shortlist(9, 3, 8), NAMES)
    assert caplog.text.count("every answer so far is the letter 'A'") == 1


def test_a_model_that_looks_is_not_suspected(caplog):
    with caplog.at_level(logging.WARNING):
        NoisyRanker(ask="letter").rank(crops(40), make_shortlist(40, 4, 8), NAMES)
        NoisyRanker(ask="yesno").rank(crops(40), make_shortlist(40, 4, 8), NAMES)
    assert not caplog.text


def test_labels_that_a_model_does_not_want_to_say_are_noticed(caplog):
    ranker = NoisyRanker(ask=Letter(num_shifts=1))
    ranker.one = lambda question, noise: Answer(
        scores=(tuple(-6.0 + math.sin(float(question.crop.sum()) + i) for i in range(3)),)
    )
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            ranker.rank(crops(40, seed), make_shortlist(40, 3, 8), NAMES)
    assert len(re.findall(r"the model gives \d\.\d % of its probability to the labels", caplog.text)) == 1


def test_report_as_a_table():
    ranker = NoisyRanker(limits={"decisive_margin": 0.3})
    ranker.rank(crops(30), make_shortlist(30, 4, 8), NAMES)
    report = ranker.report()
    table = report_table(report)
    assert table.startswith("ranker, asked by likelihood with prompt 'choose': 30 regions\n")
    assert re.search(rf"ranked completely +{report['ok']} ", table)
    assert re.search(rf"not asked +{report['skipped']} ", table)
    assert re.search(rf"put to the model +{report['asked']} +100\.0 %", table)
    assert max(map(len, table.splitlines())) < 80
    assert report_table(IdentityRanker().report()) == "ranker, asked by identity: no regions"


def test_a_ranker_of_a_users_own_is_a_size_and_a_method():
    class Reversed(Ranker):
        crop_size = 8

        def rank(self, crops, shortlist, category_names):
            order = torch.arange(shortlist.depth).flip(0).repeat(len(shortlist), 1)
            return Ranking(order, None, torch.zeros(len(shortlist), dtype=torch.int64))

    ranker = Reversed()
    ranker.load("cpu")
    ranker.judge()
    assert (ranker.missing_assets(), ranker.report(), ranker.max_candidates, dict(ranker.counts)) == ([], {}, None, {})
    assert ranker.rank(crops(2), make_shortlist(2, 3, 8), NAMES).order.tolist() == [[2, 1, 0]] * 2


def test_a_ranker_is_one_method_as_documented():
    text = (Path(__file__).parents[2] / "docs" / "rankers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n([^`]*class MyRanker.*?)```", text, flags=re.S)
    scope = {"my_model": lambda crop, prompt: "dog"}
    exec(code, scope)
    ranker = scope["MyRanker"](ask="generate")
    ranking = ranker.rank(crops(2), make_shortlist(2, 3, 8), NAMES)
    assert ranking.order.sort(1).values.tolist() == [[0, 1, 2]] * 2
    assert ranker.crop_size == 224
    assert ranker.missing_assets() == []
    where = re.search(r"@rar_mmdet\.registry\.(\w+)\.register_module", text).group(1)
    getattr(registry, where).register_module(module=scope["MyRanker"], force=True)
    assert isinstance(build_component({"type": "MyRanker", "ask": "generate"}, "ranker"), scope["MyRanker"])


def test_a_malformed_answer_is_refused_and_not_kept(tmp_path):
    ranker = NoisyRanker(cache=tmp_path / "a.sqlite")
    ranker.answer = lambda questions: iter([{0: Answer(scores=((0.1, 0.2),), lengths=(1, 1))}])
    with pytest.raises(RankerError, match="Likelihood needs 1 x 3 scores and 3 lengths"):
        ranker.rank(crops(1), make_shortlist(1, 3, 8), NAMES)
    sound = NoisyRanker(cache=tmp_path / "a.sqlite")
    assert (sound.rank(crops(1), make_shortlist(1, 3, 8), NAMES).status == RankStatus.OK).all()


def test_scores_that_are_no_numbers_are_shown(caplog):
    ranker = NoisyRanker()
    ranker.answer = lambda questions: iter([{0: Answer(scores=((math.nan,) * 3,), lengths=(1, 1, 1))}])
    with caplog.at_level(logging.WARNING):
        ranking = ranker.rank(crops(1), make_shortlist(1, 3, 8), NAMES)
    assert ranking.status.tolist() == [RankStatus.FALLBACK]
    assert "are not finite" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ask": "shout"}, "ask must be one of"),
        ({"limits": {"max_fallback_rate": 2}}, "max_fallback_rate must be in"),
        ({"limits": {"decisive_margin": -1}}, "decisive_margin must be at least 0, or None"),
        (
            {"limits": {"decisive_margins": 1}},
            "limits has no key 'decisive_margins'; its keys: decisive_margin, max_fal",
        ),
        (
            {"limits": 0.5},
            "limits must be a Limits, or a dict with the keys .*; got 0.5",
        ),
    ],
)
def test_bad_settings_fail_at_build(settings, message):
    with pytest.raises(ConfigError, match=message):
        NoisyRanker(**settings)


def test_misspelt_keys_fail_at_build():
    with pytest.raises(TypeError, match="batchsize"):
        TransformersRanker(model="x", batchsize=3)


def test_crops_must_match_the_shortlist():
    with pytest.raises(ValueError, match=r"crops must be \(3, 3, S, S\) uint8"):
        NoisyRanker().rank(crops(2), make_shortlist(3, 4, 8), NAMES)
    with pytest.raises(ValueError, match=r"crops must be \(2, 3, S, S\) uint8"):
        NoisyRanker().rank(crops(2)[..., :-1], make_shortlist(2, 4, 8), NAMES)


@pytest.mark.parametrize("ask", [Letter(), Likelihood(prompt="letter"), Likelihood(prompt="paper_in_context")], ids=str)
def test_more_candidates_than_letters_are_refused(ask):
    with pytest.raises(ValueError, match="has 26 letters, got K=27 candidates; use fewer"):
        NoisyRanker(ask=ask).rank(crops(1), make_shortlist(1, 27), [str(i) for i in range(27)])


def test_identity_and_scripted_rankers():
    shortlist = make_shortlist(3, 4, 8)
    identity = IdentityRanker().rank(crops(3), shortlist, NAMES)
    assert (identity.status == RankStatus.SKIPPED).all()
    best_last = [f"['{NAMES[int(row[-1])]}']" for row in shortlist.category_ids]
    scripted = ScriptedRanker(replies=best_last).rank(crops(3)[:2], shortlist[:2], NAMES)
    assert scripted.order[:, 0].tolist() == [3, 3]
    assert scripted.status.tolist() == [RankStatus.PARTIAL, RankStatus.PARTIAL]
    with pytest.raises(ValueError, match="replies must be a non-empty list"):
        ScriptedRanker(replies="text")
    assert len(ScriptedRanker(replies=["x"]).rank(crops(0), make_shortlist(0, 4), NAMES)) == 0


def test_rankers_pickle_unloaded():
    ranker = pickle.loads(pickle.dumps(NoisyRanker(ask="letter")))
    assert len(ranker.rank(crops(2), make_shortlist(2, 3, 8), NAMES)) == 2
