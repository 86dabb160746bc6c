"""Questions with known answers: by hand, never with what must not be there, and orders that say nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from rar_mmdet.classification import read_folders
from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.errors import FewShotError
from rar_mmdet.files import read_image
from rar_mmdet.finetune import examples as module
from rar_mmdet.finetune.examples import (
    NONE_OF_THESE,
    halves,
    make_examples,
    our_examples,
    paper_examples,
    released_examples,
)
from rar_mmdet.finetune.exports import NONE_NAME, ExportWriter, turns_of
from rar_mmdet.rankers import TransformersRanker
from rar_mmdet.rankers.asks import Generate, Letter, Likelihood, YesNo
from rar_mmdet.rankers.prompts import clean_candidate
from rar_mmdet.rankers.questions import Question
from rar_mmdet.records import read_records
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import make_image

ROOT = Path(__file__).parents[2]


def on_circle(*degrees):
    """Unit vectors of the plane; the cosine of two is that of the angle between them."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


@pytest.fixture(scope="module")
def world():
    """200 photos of 20 classes, 10 each, loosely around their class."""
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(20, 16, generator=generator), dim=1)
    labels = torch.arange(20).repeat(10)
    vectors = normalize(centres[labels] + 0.25 * torch.randn(200, 16, generator=generator), dim=1)
    text = normalize(centres + 0.2 * torch.randn(20, 16, generator=generator), dim=1).T
    return vectors, labels, text


def test_released_windows_by_hand():
    vectors, labels = on_circle(0, 10, 21, 33, 46), torch.tensor([0, 1, 0, 2, 1])
    found = [e for e in released_examples(vectors, labels, neighbours=4, window=3) if e.photo == 0]
    # Neighbours of photo 0, itself first: 0, 1, 2, 3 with the labels 0, 1, 0, 2; the windows 0 1 0 and 1 0 2.
    assert [e.labels for e in found] == [(0, 1, 0), (1, 0, 2)]
    assert [e.truth for e in found] == [0, 1]
    assert [e.target for e in found] == [(0, 2, 1), (1, 0, 2)]  # the true name first, the rest as they are
    assert found[0].similarities == pytest.approx((1, np.cos(np.radians(10)), np.cos(np.radians(21))), abs=1e-6)
    assert found[0].copied_is_right
    # Photo 3 is of class 2: its neighbours 3, 2, 4, 1 hold it once, in the first window.
    (only,) = [e for e in released_examples(vectors, labels, neighbours=4, window=3) if e.photo == 3]
    assert only.labels == (2, 0, 1)


def test_every_released_photo_begins_with_the_answer(world):
    vectors, labels, _ = world
    first = {}
    for example in released_examples(vectors, labels):
        first.setdefault(example.photo, example)
        assert labels[example.photo] in example.labels
        assert len(example.labels) == 5
    assert all(example.copied_is_right for example in first.values())
    assert len(first) == len(labels)


def test_halves_are_disjoint_and_have_every_class(world):
    _, labels, _ = world
    memory, queries = halves(labels, seed=3)
    assert sorted([*memory.tolist(), *queries.tolist()]) == list(range(200))
    assert torch.bincount(labels[memory]).tolist() == torch.bincount(labels[queries]).tolist() == [5] * 20
    assert halves(labels, seed=4)[0].tolist() != memory.tolist()
    assert halves(torch.tensor([0]), 0)[1].tolist() == []
    groups = [f"photo {row // 2}" for row in range(200)]  # two regions a photo
    memory, queries = (rows.tolist() for rows in halves(labels, 3, groups))
    assert sorted([*memory, *queries]) == list(range(200))
    assert {groups[row] for row in memory}.isdisjoint(groups[row] for row in queries)


def test_paper_queries_are_never_their_own_neighbours(world):
    vectors, labels, _ = world
    memory, queries = (set(rows.tolist()) for rows in halves(labels, seed=0))
    nearest = {query: {row: float(vectors[query] @ vectors[row]) for row in memory} for query in queries}
    count = 0
    for example in paper_examples(vectors, labels, seed=0):
        count += 1
        assert example.photo in queries
        assert len(set(example.labels)) == len(example.labels)
        assert example.labels[example.truth] == labels[example.photo]
        own = nearest[example.photo]
        for label, similarity in zip(example.labels, example.similarities, strict=True):
            assert min(abs(own[row] - similarity) for row in memory if labels[row] == label) < 1e-6
        by_similarity = sorted(range(len(example.labels)), key=lambda place: -example.similarities[place])
        assert list(example.target) == by_similarity
    assert count > 200


def test_our_photos_see_no_photo_of_their_own(world):
    vectors, labels, text = world
    groups = [f"photo {row // 2}" for row in range(200)]  # two regions a photo
    for example in our_examples(vectors, labels, text, groups=groups, seed=1):
        assert len(set(example.labels)) == len(example.labels)
        assert 2 < len(example.labels) + (NONE_OF_THESE in example.labels) <= 11
        right = example.labels[example.truth]
        assert right in (int(labels[example.photo]), NONE_OF_THESE)
        if right == NONE_OF_THESE:
            assert int(labels[example.photo]) not in example.labels
        others = torch.tensor([row for row in range(200) if groups[row] != groups[example.photo]])
        for label, similarity in zip(example.labels, example.similarities, strict=True):
            if label != NONE_OF_THESE:
                rows = others[labels[others] == label]
                assert similarity == pytest.approx(float((vectors[rows] @ vectors[example.photo]).max()), abs=1e-6)
        assert example.target[0] == example.truth
        behind = [example.similarities[p] for p in example.target[1:] if example.labels[p] != NONE_OF_THESE]
        assert behind == sorted(behind, reverse=True)
        assert sorted(example.target) == list(range(len(example.labels)))


@pytest.mark.parametrize("mode", ["ours", "paper"])
def test_the_order_says_nothing_about_the_answer(mode):
    """The place of the right name is uniform: chi-square over 10^4 questions of equal length, at 0.1 %."""
    generator = torch.Generator().manual_seed(1)
    centres = normalize(torch.randn(30, 24, generator=generator), dim=1)
    labels = torch.arange(30).repeat(120)
    vectors = normalize(centres[labels] + 0.6 * torch.randn(3600, 24, generator=generator), dim=1)
    by_size = {}
    for example in make_examples(mode, vectors, labels, centres.T, seed=5):
        by_size.setdefault(len(example.labels), []).append(example.truth)
    assert sum(map(len, by_size.values())) > 10_000
    # 99.9 % points of chi-square with k - 1 degrees of freedom (tables).
    limits = {2: 10.83, 3: 13.82, 4: 16.27, 5: 18.47, 6: 20.52, 7: 22.46, 8: 24.32, 9: 26.12, 10: 27.88, 11: 29.59}
    for size, truths in by_size.items():
        counts = np.bincount(truths, minlength=size)
        expected = len(truths) / size
        if expected >= 5:
            assert ((counts - expected) ** 2 / expected).sum() < limits[size]


def test_names_alone_are_asked_once_a_photo(world):
    vectors, labels, text = world
    found = list(make_examples("names", vectors, labels, text, seed=1))
    assert [e.photo for e in found] == list(range(200))
    assert all(len(set(e.labels)) == 10 and e.labels[e.truth] == labels[e.photo] for e in found)
    assert np.bincount([e.truth for e in found], minlength=10).min() > 5


def test_none_of_these_has_its_share(world):
    vectors, labels, text = world
    found = list(our_examples(vectors, labels, text, per_photo=50, none_share=0.1))
    right = sum(e.labels[e.truth] == NONE_OF_THESE for e in found)
    offered = sum(NONE_OF_THESE in e.labels for e in found)
    spread = 4 * np.sqrt(0.1 * 0.9 * len(found))
    assert abs(right - 0.1 * len(found)) < spread
    assert abs(offered - 0.2 * len(found)) < 2 * spread
    assert not any(NONE_OF_THESE in e.labels for e in our_examples(vectors, labels, text, none_share=0.0))


def test_a_photos_questions_depend_on_nothing_but_the_seed(world, monkeypatch):
    vectors, labels, text = world
    for mode in ("ours", "paper", "released"):
        whole = list(make_examples(mode, vectors, labels, text, seed=2))
        monkeypatch.setattr(module, "SIMILARITIES", 7 * 200)
        again = list(make_examples(mode, vectors, labels, text, seed=2))
        assert [(e.photo, e.labels, e.target) for e in again] == [(e.photo, e.labels, e.target) for e in whole]
        monkeypatch.undo()
    other = list(our_examples(vectors, labels, text, seed=3))
    assert [e.labels for e in other] != [e.labels for e in our_examples(vectors, labels, text, seed=2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, y, t: list(released_examples(v, y[:3])), r"made of \(N, D\) vectors and \(N,\) labels"),
        (lambda v, y, t: list(our_examples(v, y, t[:, :2])), "needs at least 3 classes and a name for each label"),
        (lambda v, y, t: list(our_examples(v, y, t[:, :19])), "needs at least 3 classes and a name for each label"),
        (
            lambda v, y, t: make_examples("our", v, y, t),
            "there is no mode 'our'; known are ours, paper, released, names",
        ),
    ],
)
def test_what_does_not_fit(world, call, message):
    with pytest.raises(FewShotError, match=message):
        call(*world)


NAMES = [f"name {i}" for i in range(20)]


@pytest.mark.parametrize("ask", [Generate(), Letter(num_shifts=3), Likelihood(), YesNo()], ids=lambda a: a.name)
def test_answers_are_what_the_way_to_ask_calls_right(world, ask):
    vectors, labels, text = world
    for number, example in enumerate(our_examples(vectors, labels, text, per_photo=1)):
        turns = list(turns_of(example, number, "a.jpg", NAMES, ask))
        right = example.labels[example.truth]
        name = NONE_NAME if right == NONE_OF_THESE else NAMES[right]
        if ask.name == "yesno":
            assert [turn.answer for turn in turns].count("yes") == 1
            (yes,) = [turn for turn in turns if turn.answer == "yes"]
            assert name in yes.text
        elif ask.name == "letter":
            assert len(turns) == min(3, len(example.labels))
            for turn in turns:
                assert f"{turn.answer}. {name}" in turn.text
        elif ask.name == "likelihood":
            assert [turn.answer for turn in turns] == [name]
        else:
            assert turns[0].answer.startswith(f"['{name}'")
            assert all(label == NONE_OF_THESE or NAMES[label] in turns[0].text for label in example.labels)


def test_an_answer_of_one_name_is_the_right_one_whatever_is_most_similar():
    example = module.RankingExample(0, (3, 5, 8), truth=1, target=(2, 1, 0), similarities=(0.1, 0.5, 0.9))
    answers = {ask.name: [t.answer for t in turns_of(example, 0, "a.jpg", NAMES, ask)] for ask in (
        Generate(), Letter(num_shifts=1), Likelihood(), YesNo()
    )}  # fmt: skip
    assert answers["generate"] == ["['name 8', 'name 5', 'name 3']"]
    assert (answers["letter"], answers["likelihood"]) == (["B"], ["name 5"])
    assert answers["yesno"] == ["no", "yes", "no"]


def read_llava(entry):
    (human, gpt), place = entry["conversations"], "<image>\n"
    assert (human["from"], gpt["from"]) == ("human", "gpt")
    assert human["value"].count("<image>") == 1
    return entry["image"], human["value"].removeprefix(place), gpt["value"]


def read_messages(entry):
    (user, assistant), (photo,) = entry["messages"], entry["images"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    assert user["content"].count("<image>") == len(entry["images"])  # as ms-swift and LLaMA-Factory check
    return photo, user["content"].removeprefix("<image>"), assistant["content"]


def read_trl(entry):
    (user, assistant), (photo,) = entry["messages"], entry["images"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    image, text = user["content"]
    assert (image, text["type"]) == ({"type": "image"}, "text")
    assert "<image>" not in text["text"]
    (answer,) = assistant["content"]
    return photo, text["text"], answer["text"]


def read_xcomposer(entry):
    (user, assistant), (photo,) = entry["conversations"], entry["image"]
    assert (user["from"], assistant["from"]) == ("user", "assistant")
    return photo, user["value"].removeprefix("<ImageHere>"), assistant["value"]


@pytest.mark.parametrize("ask", [Generate(), YesNo()], ids=lambda a: a.name)
@pytest.mark.parametrize("read", [read_llava, read_messages, read_trl, read_xcomposer], ids=lambda f: f.__name__[5:])
def test_what_is_written_can_be_read_again(tmp_path, read, ask):
    names = ["oak, old", 'the "red" fox', "Ästling 狐", "d'Artagnan\\", "owl"]
    examples = [
        module.RankingExample(0, (3, 0, 4), 1, (1, 0, 2), (0.1, 0.5, 0.9)),
        module.RankingExample(1, (2, NONE_OF_THESE, 1), 0, (0, 2, 1), (0.9, 0.0, 0.2)),
    ]
    turns = [t for n, e in enumerate(examples) for t in turns_of(e, n, f"fotos/ä {n}.jpg", names, ask)]
    with ExportWriter(read.__name__.removeprefix("read_"), tmp_path) as export:
        for turn in turns:
            export.add(turn)
    text = export.path.read_text(encoding="utf-8")
    entries = json.loads(text) if export.path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    assert [read(entry) for entry in entries] == [(turn.photo, turn.text, turn.answer) for turn in turns]


@pytest.fixture
def config(tmp_path):
    for label, name in enumerate(("grey wolf", "oak, old", "red fox", "owl")):
        for part, count in (("train", 6), ("test", 1)):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([label, i]).normal(0, 60, (48, 64, 3))
                picture = np.clip(make_image(48, 64, seed=label) + noise, 0, 255)
                Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i}.png")
    file = tmp_path / "own.py"
    file.write_text(
        f"encoder = dict(type='OpenClipEncoder', model='local-dir:{ROOT}/demo/weights/clip')\n"
        f"dataset = dict(type='folders', root={str(tmp_path / 'photos')!r})\n"
    )
    return file


def test_the_command(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    line = ["finetune", "data", str(config), "--out", str(out)]
    assert rar_mmdet([*line, "--formats", "llava", "messages", "xcomposer", "--ask", "letter"]) == 0
    shown = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    records = [json.loads(text) for text in (out / "records.jsonl").read_text().splitlines()]
    assert summary["examples"] == len(records) == 24 * 9
    assert f"{24 * 9} examples of 24 photos" in shown
    assert "a model that copies the order of the question is right in" in shown
    llava = json.loads((out / "llava.json").read_text())
    messages = [json.loads(text) for text in (out / "messages.jsonl").read_text().splitlines()]
    xcomposer = json.loads((out / "xcomposer.json").read_text())
    assert len(llava) == len(messages) == len(xcomposer) == summary["entries"]
    for entry, other, third in zip(llava, messages, xcomposer, strict=True):
        assert (
            entry["conversations"][1]["value"] == other["messages"][1]["content"] == third["conversations"][1]["value"]
        )
        assert Path(entry["image"]).is_file()
        assert other["images"] == third["image"] == [entry["image"]]
    page = (out / "examples.html").read_text()
    assert page.count("<article>") == 50
    before = (out / "records.jsonl").read_bytes()
    assert rar_mmdet([*line, "--formats", "llava"]) == 0
    assert (out / "records.jsonl").read_bytes() == before
    capsys.readouterr()
    assert rar_mmdet([*line, "--cfg-options", "dataset.root=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_classifier_is_taught_on_few_shots_and_read_over_all_names(config, tiny, tmp_path, monkeypatch):
    """The baseline from its photos to its row of the table."""
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    line = ["finetune", "data", str(config), "--out", str(tmp_path / "data"), "--device", "cpu"]
    assert rar_mmdet([*line, "--mode", "names", "--shots", "2", "--ask", "likelihood", "--prompt", "name"]) == 0
    ranker = {"type": "TransformersRanker", "model": str(tiny("llava")), "image_size": 28}
    ranker["ask"] = {"type": "Likelihood", "prompt": "name"}
    schedule = {"batch_size": 4, "steps": 4, "learning_rate": 1e-2, "look_rows": 0, "look_every": 0, "workers": 0}
    training = tmp_path / "training.py"
    records = str(tmp_path / "data" / "records.jsonl")
    training.write_text(f"ranker = {ranker!r}\nrecords = {records!r}\nschedule = {schedule!r}\n")
    assert rar_mmdet(["finetune", "train", str(training), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    ranker["adapter"] = str(tmp_path / "run" / "adapter")
    config.write_text(f"{config.read_text()}ranker = {ranker!r}\nranker_cropper = dict(window='pad')\n")
    out = tmp_path / "table"
    line = ["classify", str(config), "--rows", "mllm", "--shots", "2", "--seeds", "1", "--out", str(out)]
    assert rar_mmdet([*line, "--device", "cpu"]) == 0
    taught = TransformersRanker(**{key: value for key, value in ranker.items() if key != "type"})
    crop = RegionCropper(window="pad").with_size(taught.crop_size)
    records = list(read_records(out / "records" / "mllm.jsonl"))
    dataset = read_folders(str(tmp_path / "photos"))
    assert len(records) == len(dataset.test) == 4
    right = []
    for photo in dataset.test:
        question = Question(
            crop.crop(read_image(photo.path), [(0, 0, 64, 48)])[0], tuple(map(clean_candidate, dataset.display_names))
        )
        (answers,) = taught.answer([question])
        right.append(int(np.argmax(answers[0].scores[0])) == photo.label)
    assert json.loads((out / "summary.json").read_text())["rows"]["mllm"]["2"] == pytest.approx(np.mean(right))


def test_a_set_without_a_train_part(config, tmp_path, capsys):
    import shutil

    shutil.rmtree(tmp_path / "photos" / "train")
    assert rar_mmdet(["finetune", "data", str(config), "--out", str(tmp_path / "out")]) == 2
    assert "has no train part to make questions of" in capsys.readouterr().err


def test_questions_about_annotated_boxes(tmp_path, monkeypatch):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    names = ["plain red star", "dotted blue heart", "striped green cross", "ringed pink drop"]
    photos, boxes = [], []
    for number in range(4):
        Image.fromarray(make_image(60, 80, seed=number)).save(tmp_path / f"{number}.png")
        photos.append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 80})
        for place in range(2):
            box = [5 + 30 * place, 10, 25, 30]
            boxes.append({"id": len(boxes), "image_id": number, "category_id": (number + place) % 4 + 1, "bbox": box})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"images": photos, "annotations": boxes, "categories": categories}))
    config = tmp_path / "recognizer.py"
    config.write_text(
        f"encoder = dict(type='OpenClipEncoder', model='local-dir:{ROOT}/demo/weights/clip')\n"
        f"cropper = dict(window='pad')\nmemory = dict(type='TextMemory')\nvocabulary = {names!r}\n"
    )
    line = ["finetune", "data", str(config), "--annotations", str(file), "--out", str(tmp_path / "out")]
    assert rar_mmdet([*line, "--device", "cpu"]) == 2  # without --images
    assert rar_mmdet([*line, "--device", "cpu", "--images", str(tmp_path), "--mode", "paper"]) == 0
    assert rar_mmdet([*line, "--device", "cpu", "--images", str(tmp_path), "--formats", "messages"]) == 0
    records = [json.loads(text) for text in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert len(records) == 8 * 9
    right = {(b["image_id"], *b["bbox"]): names[b["category_id"] - 1] for b in boxes}
    for record in records:
        left, top, x2, y2 = record["box_xyxy"]
        name = right[int(Path(record["photo"]).stem), left, top, x2 - left, y2 - top]
        assert record["names"][record["truth"]] in (name, NONE_NAME)
    entry = json.loads((tmp_path / "out" / "messages.jsonl").read_text().splitlines()[0])
    assert entry["box_xyxy"] == records[0]["box_xyxy"]
