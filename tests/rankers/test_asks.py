"""Ways to ask by themselves: what is shown, what a trained model answers, and what an answer means."""

import dataclasses
import json
import math
import pickle
from dataclasses import replace

import pytest
import torch

from rar_mmdet.components import build_component
from rar_mmdet.errors import ConfigError, MissingAssetError, RankerError
from rar_mmdet.rankers import Answer, Ask, Generate, Letter, Likelihood, Open, Question, YesNo
from rar_mmdet.rankers.asks import as_ask, cyclic_shifts
from rar_mmdet.structures import RankStatus

CROP = torch.zeros(3, 4, 4, dtype=torch.uint8)
NAMES = ("cat", "dog", "hot dog")
QUESTION = Question(CROP, NAMES)
WAYS = [Likelihood(), Letter(), Letter(num_shifts=1), YesNo(), Generate()]


def log_softmax(values):
    return torch.log_softmax(torch.tensor(values, dtype=torch.float64), 0)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_way_is_data(way):
    assert isinstance(way, Ask)
    assert way == dataclasses.replace(way) == pickle.loads(pickle.dumps(way))
    assert hash(way) == hash(dataclasses.replace(way))
    json.dumps([way.report(), way.key()])
    with pytest.raises(dataclasses.FrozenInstanceError):
        way.prompt = "x"


def test_texts():
    assert Likelihood(prompt="name").texts(QUESTION) == ["What is the object in the image?"]
    assert Letter(num_shifts=1).texts(QUESTION)[0].split("\n")[1:4] == ["A. cat", "B. dog", "C. hot dog"]
    assert [text.split("\n")[1] for text in Letter().texts(QUESTION)] == ["A. cat", "A. dog", "A. hot dog"]
    assert YesNo().texts(QUESTION)[2] == "Is the object in the image a hot dog? Answer yes or no."
    assert "['cat', 'dog', 'hot dog']" in Generate().texts(QUESTION)[0]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("truth", [0, 1, 2])
def test_what_is_taught_is_what_is_read(way, truth):
    """A model that answers each text with its target ranks the truth first."""
    texts, targets = way.texts(QUESTION), way.target(QUESTION, truth)
    assert len(texts) == len(targets)
    labels = [word for word, *_ in way.labels(len(NAMES))]
    if way.wants == "text":
        answer = Answer(reply=targets[0])
    elif way.wants == "labels":
        answer = Answer(scores=tuple(tuple(0.0 if label == target else -9.0 for label in labels) for target in targets))
    else:
        scores = tuple(0.0 if name == targets[0] else -9.0 for name in NAMES)
        answer = Answer(scores=(scores,), lengths=(1, 1, 2))
    way.check(answer, len(NAMES))
    reading = way.read(answer, QUESTION)
    assert reading.order[0] == truth
    assert reading.status is RankStatus.OK


def test_a_target_may_be_an_order():
    assert Generate().target(QUESTION, [2, 0, 1]) == ["['hot dog', 'cat', 'dog']"]
    assert Generate().target(QUESTION, [2]) == Generate().target(QUESTION, 2) == ["['hot dog', 'cat', 'dog']"]
    assert Likelihood().target(QUESTION, [1, 0]) == ["dog"]
    assert Letter().target(QUESTION, [1, 0]) == ["B", "A", "C"]
    assert YesNo().target(QUESTION, [1, 0]) == ["no", "yes", "no"]


def test_two_candidates_of_one_name_are_both_right():
    assert YesNo().target(Question(CROP, ("bow", "tie", "bow")), 0) == ["yes", "no", "yes"]


def test_order_that_is_shown():
    names = ["dog", "cat", "ape"]
    assert Likelihood().shown_order(names) == YesNo().shown_order(names) == [2, 1, 0]
    assert Letter().shown_order(names) == Generate().shown_order(names) == [0, 1, 2]


def test_sum_mean_and_pmi():
    answer = Answer(scores=((-6.0, -4.0, -5.0),), lengths=(3, 1, 2))
    assert Likelihood().read(answer, QUESTION).scores == (-6.0, -4.0, -5.0)
    assert Likelihood(score="mean").read(answer, QUESTION).scores == (-2.0, -4.0, -2.5)
    pmi = Likelihood(score="pmi")
    assert pmi.read(answer, QUESTION, [answer]).scores == (0.0, 0.0, 0.0)  # of the prior itself
    assert Likelihood(score="pmi", pmi_weight=0.0).read(answer, QUESTION, [answer]).scores == (-6.0, -4.0, -5.0)
    lacking = pmi.read(answer, QUESTION, [Answer()])
    assert lacking.status is RankStatus.FALLBACK


def test_blank_crops_of_pmi():
    assert Likelihood().blanks(QUESTION) == []
    (together,) = Likelihood(score="pmi").blanks(QUESTION)
    assert together.candidates == NAMES
    assert (together.crop == 127).all()
    each = Likelihood(score="pmi", prompt="name").blanks(QUESTION)
    assert [question.candidates for question in each] == [("cat",), ("dog",), ("hot dog",)]


@pytest.mark.parametrize("k", [2, 3, 5, 7])
def test_all_shifts_cancel_any_label_prior(k):
    generator = torch.Generator().manual_seed(k)
    truth, prior = torch.randn(k, generator=generator), torch.randn(k, generator=generator) * 5
    # Label p of shift s shows candidate shift[p].
    scores = tuple(tuple((truth[shift] + prior).tolist()) for shift in cyclic_shifts(k, k))
    question = Question(CROP, tuple(f"thing {i}" for i in range(k)))
    reading = Letter().read(Answer(scores=scores), question)
    assert torch.allclose(log_softmax(reading.scores), torch.log_softmax(truth.double(), 0), atol=1e-5)
    by_order = [shift[int((truth[shift] + prior).argmax())] for shift in cyclic_shifts(k, k)]
    assert reading.preferred == tuple(by_order)


def test_every_candidate_visits_every_position_once():
    table = torch.tensor(cyclic_shifts(5, 5))
    assert (table.sort(dim=0).values == torch.arange(5)[:, None]).all()
    assert (table.sort(dim=1).values == torch.arange(5)).all()
    assert cyclic_shifts(6, 2) == [[0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2]]
    assert len(cyclic_shifts(3, 9)) == 3


def test_yes_and_no_are_the_posterior_of_exactly_one():
    p = torch.tensor([0.9, 0.3, 0.5], dtype=torch.float64)
    answer = Answer(scores=tuple((math.log(yes), math.log(1 - yes)) for yes in p.tolist()))
    exactly_one = torch.stack([p[j] * torch.cat([1 - p[:j], 1 - p[j + 1 :]]).prod() for j in range(3)])
    assert torch.allclose(log_softmax(YesNo().read(answer, QUESTION).scores).exp(), exactly_one / exactly_one.sum())


def test_label_mass_is_what_the_labels_had_together():
    letters = Answer(scores=((math.log(0.2), math.log(0.3), math.log(0.1)),))
    assert Letter(num_shifts=1).read(letters, QUESTION).label_mass == pytest.approx(0.6)
    answer = Answer(scores=tuple((math.log(yes), math.log(0.1)) for yes in (0.4, 0.5, 0.6)))
    assert YesNo().read(answer, QUESTION).label_mass == pytest.approx(0.6)
    names = Answer(scores=((math.log(0.2), math.log(0.3), math.log(0.1)),), lengths=(1, 1, 1))
    for score in ("sum", "mean"):
        assert Likelihood(score=score).read(names, QUESTION).label_mass == pytest.approx(0.6)
    twice = Likelihood().read(names, Question(CROP, ("dog", "cat", "dog")))
    assert twice.label_mass == pytest.approx(0.3 + 0.1)  # one name, one event


def test_presence_is_evidence_that_any_candidate_is_right():
    p = (0.9, 0.3, 0.5)
    answer = Answer(scores=tuple((math.log(0.8 * yes), math.log(0.8 * (1 - yes))) for yes in p))
    assert YesNo().read(answer, QUESTION).presence == pytest.approx(1 - 0.1 * 0.7 * 0.5)
    same = Question(CROP, ("dog", "cat", "dog"))
    assert YesNo().read(replace(answer, scores=(answer.scores[0],) * 3), same).presence == pytest.approx(1 - 0.1 * 0.1)
    sure = Answer(scores=((0.0, -math.inf), (-800.0, 0.0), (-800.0, 0.0)))
    assert YesNo().read(sure, QUESTION).presence in (1.0, None)
    letters = Answer(scores=((math.log(0.2), math.log(0.3), math.log(0.1)),))
    assert Letter(num_shifts=1).read(letters, QUESTION).presence == pytest.approx(0.6)
    assert Generate().read(Answer(reply="['dog', 'cat', 'hot dog']"), QUESTION).presence is None


def test_masses_that_a_server_tells_go_before_those_of_the_scores():
    row = (math.log(0.2), math.log(0.3), math.log(0.1))
    assert Letter(num_shifts=1).read(Answer(scores=(row,), masses=(0.25,)), QUESTION).label_mass == 0.25
    unknown = Letter(num_shifts=1).read(Answer(scores=(row,), masses=(None,)), QUESTION)
    assert (unknown.label_mass, unknown.presence) == (None, None)
    with pytest.raises(RankerError, match="1 masses or none"):
        Letter(num_shifts=1).check(Answer(scores=(row,), masses=(0.1, 0.2)), 3)


def test_answers_are_kept_with_their_masses_and_those_of_earlier_files_stay_readable():
    old = "[[[-0.5, -1.25]], [], null]"
    assert Answer.load(old) == Answer(scores=((-0.5, -1.25),))
    assert Answer.load(old).dump() == old
    told = Answer(scores=((-0.5, -1.25),), masses=(0.875, None))
    assert Answer.load(told.dump()) == told
    assert Answer.layout() == ["scores", "lengths", "reply"]  # part of the keys under which answers are kept


def test_candidates_of_one_name_get_one_score():
    question = Question(CROP, ("dog", "cat", "dog"))
    reading = Likelihood().read(Answer(scores=((-1.0, -2.0, -1.1),), lengths=(1, 1, 1)), question)
    assert reading.scores == (-1.0, -2.0, -1.0)
    assert reading.order == (0, 2, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("way", [Likelihood(), Letter(num_shifts=1), YesNo()], ids=str)
def test_scores_that_are_no_numbers_are_no_answer(way, bad):
    row = ((bad, -1.0),) * 3 if way.name == "yesno" else ((bad, -1.0, -2.0),)
    answer = Answer(scores=row, lengths=(1, 1, 1) if way.name == "likelihood" else ())
    reading = way.read(answer, QUESTION)
    assert (reading.status, reading.order, reading.scores) == (RankStatus.FALLBACK, (0, 1, 2), None)
    assert "are not finite" in reading.problem


def test_texts_are_read_by_every_way():
    assert Generate().read(Answer(reply="['dog', 'cat', 'hot dog']"), QUESTION).order == (1, 0, 2)
    assert Letter().read(Answer(reply="B. dog"), QUESTION).order == (1, 0, 2)
    assert YesNo().read(Answer(reply="dog"), QUESTION).order == (1, 0, 2)
    for way in WAYS:
        silent = way.read(Answer(reply="I cannot help with that."), QUESTION)
        assert (silent.status, silent.order) == (RankStatus.FALLBACK, (0, 1, 2))
        assert "'I cannot help with that.'" in silent.problem
        assert silent.reply == "I cannot help with that."
        assert way.read(Answer(), QUESTION).status is RankStatus.FALLBACK


def test_letters_count_as_text_where_the_prompt_shows_them(tmp_path):
    (tmp_path / "p.json").write_text('{"lettered": "Sort these: {options}"}')
    way = Generate(prompt="lettered", prompts=tmp_path / "p.json")
    assert way.read(Answer(reply="B > A > C"), QUESTION).order == (1, 0, 2)
    assert Generate().read(Answer(reply="B > A > C"), QUESTION).status is RankStatus.FALLBACK


@pytest.mark.parametrize(
    ("way", "answer", "message"),
    [
        (Likelihood(), Answer(scores=((0.1, 0.2),), lengths=(1, 1)), "Likelihood needs 1 x 3 scores and 3 lengths"),
        (Likelihood(), Answer(scores=((0.1, 0.2, 0.3),)), "Likelihood needs 1 x 3 scores and 3 lengths"),
        (YesNo(), Answer(scores=((0.1, 0.2, 0.3),)), "YesNo needs 3 x 2 scores and 0 lengths"),
        (Letter(), Answer(scores=((0.1, 0.2, 0.3),)), "Letter needs 3 x 3 scores"),
        (Generate(), Answer(scores=((0.1, 0.2, 0.3),)), "Generate needs 0 x 0 scores and 0 lengths, or a reply"),
    ],
)
def test_answers_of_another_shape_are_refused(way, answer, message):
    with pytest.raises(RankerError, match=message):
        way.check(answer, 3)
    way.check(Answer(reply="cat"), 3)


@pytest.mark.parametrize(
    ("value", "way"),
    [
        ("letter", Letter()),
        ("likelihood", Likelihood()),
        ({"type": "Letter", "num_shifts": 2}, Letter(num_shifts=2)),
        ({"type": "generate"}, Generate()),
        (YesNo(), YesNo()),
    ],
)
def test_forms_of_a_way(value, way):
    assert as_ask(value) == way


def test_a_config_names_a_way():
    way = build_component({"type": "Likelihood", "score": "mean"}, "ranker.ask")
    assert way == Likelihood(score="mean")
    with pytest.raises(ConfigError, match="Letter has no key 'num_shift'; did you mean 'num_shifts'"):
        build_component({"type": "Letter", "num_shift": 1}, "ranker.ask")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "shout",
            "ask must be one of 'likelihood', 'letter', 'yesno', 'generate', 'decide', 'open', or one of the classes",
        ),
        ({"num_shifts": 1}, "ask must be one of"),
        ({"type": "Letter", "num_shift": 1}, "unexpected keyword argument 'num_shift'"),
        (5, "got 5"),
    ],
)
def test_what_is_no_way(value, message):
    with pytest.raises(ConfigError, match=message):
        as_ask(value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Likelihood(score="max"), "Likelihood.score must be 'sum', 'mean' or 'pmi', got 'max'"),
        (lambda: Likelihood(prompt="nope"), "prompt='nope' is not known; known are"),
        (lambda: Letter(prompt="choose"), "Letter needs a prompt with {options} or {option_lines}"),
        (lambda: Letter(num_shifts=0), "num_shifts must be a whole number of at least 1 or None, got 0"),
        (lambda: Letter(num_shifts=2.5), "num_shifts must be a whole number"),
        (lambda: Letter(num_shifts=True), "num_shifts must be a whole number"),
        (lambda: Generate(prompt="name"), "Generate needs a prompt that shows the candidates"),
        (lambda: Generate(max_new_tokens=0), "max_new_tokens must be a whole number"),
        (lambda: Likelihood(prompt="yesno"), "YesNo, and no other way to ask, needs a prompt with {name}"),
        (lambda: YesNo(prompt="choose"), "needs a prompt with {name} in it; this is YesNo"),
    ],
)
def test_settings_are_checked(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "p.json"
    file.write_text('{"choose": "Which? {categories}"}')
    assert Likelihood(prompts=file).texts(QUESTION) == ["Which? ['cat', 'dog', 'hot dog']"]
    file.write_text('{"choose": "Which? {catgories} {\\"json\\": 1}"}')
    with pytest.raises(ConfigError, match=r"no placeholder '{catgories}'; there are {categories}, {options}"):
        Likelihood(prompts=file)
    with pytest.raises(MissingAssetError, match="nowhere.json' does not exist"):
        Likelihood(prompts=tmp_path / "nowhere.json")


def test_letters_are_counted_by_text():
    shifts = cyclic_shifts(3, 3)
    always_a = Answer(scores=((-0.1, -3.0, -4.0),) * 3)
    assert Letter().read(always_a, QUESTION).letters == ("A", "A", "A")
    sees = Answer(scores=tuple(tuple(0.0 if c == 1 else -5.0 for c in shift) for shift in shifts))
    assert Letter().read(sees, QUESTION).letters == ("B", "A", "C")
    assert Letter().read(Answer(reply="C"), QUESTION).letters == ("C",)


def test_how_many_candidates():
    assert Letter().max_candidates == Likelihood(prompt="letter").max_candidates == 26
    assert Likelihood().max_candidates is None
    assert Generate(prompt="paper_in_context").max_candidates == 26


def test_an_open_question_shows_no_candidates():
    way = Open()
    assert way.texts(QUESTION) == [way.wording.text]
    assert way.texts(Question(QUESTION.crop, (), "Which bird?")) == ["Which bird?"]
    reading = way.read(Answer(reply="It is a hot dog."), QUESTION)
    assert QUESTION.candidates[reading.order[0]] == "hot dog"
