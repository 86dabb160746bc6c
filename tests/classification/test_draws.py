"""Lists of exemplars: published, by the release's rule, drawn, written and read again."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import pytest

from rar_mmdet.classification import (
    Example,
    PhotoDataset,
    draw_first,
    draw_seeded,
    read_draw,
    stratified_sample,
    whole_train,
    write_draw,
)
from rar_mmdet.errors import DatasetError, MissingAssetError


def photos(split, counts):
    """Photos of each class, classes taking turns."""
    rows = [(number, label) for label, count in enumerate(counts) for number in range(count)]
    return tuple(
        Example(f"2750/{'ABC'[label]}/{split}_{number}.jpg", "", label, "ABC"[label], "ABC"[label])
        for number, label in sorted(rows)
    )


@pytest.fixture
def dataset():
    return PhotoDataset(
        "toy", tuple("ABC"), tuple("ABC"), photos("train", (6, 5, 2)), (), photos("test", (9, 5, 1)), "hash", "file"
    )


def ids(draw):
    return [example.id.split("/", 1)[1] for example in draw.examples]


def test_first_n_is_the_order_of_the_split(dataset, caplog):
    assert ids(draw_first(dataset, 2)) == [f"{c}/train_{n}.jpg" for c in "ABC" for n in range(2)]
    assert not caplog.text
    assert len(draw_first(dataset, 4)) == 4 + 4 + 2
    assert "1 of 3 classes have fewer than 4 photos" in caplog.text


def test_seeded_draws(dataset):
    draw = draw_seeded(dataset, 2, seed=1)
    assert Counter(example.label for example in draw.examples) == {0: 2, 1: 2, 2: 2}
    assert draw == draw_seeded(dataset, 2, seed=1)
    assert draw.sha256 == draw_seeded(dataset, 2, seed=1).sha256
    assert len({draw_seeded(dataset, 2, seed=seed).sha256 for seed in range(9)}) > 5
    # Another order of the split changes nothing, nor do other classes; fewer shots are the first of more.
    turned = replace(dataset, train=dataset.train[::-1])
    assert ids(draw_seeded(turned, 2, seed=1)) == ids(draw)
    alone = replace(dataset, train=tuple(e for e in dataset.train if e.label == 1))
    assert ids(draw_seeded(alone, 2, seed=1)) == ids(draw)[2:4]
    more = draw_seeded(dataset, 4, seed=1)
    assert [e for label in range(3) for e in [e for e in more.examples if e.label == label][:2]] == list(draw.examples)


def test_seeded_draws_are_the_same_on_every_machine(dataset):
    """Guards the rule itself: Python's Random, seeded with text, has given these since Python 3.2."""
    assert ids(draw_seeded(dataset, 1, seed=3)) == GUARDED


GUARDED = ["A/train_1.jpg", "B/train_1.jpg", "C/train_0.jpg"]


def test_the_whole_train_part(dataset):
    draw = whole_train(dataset)
    assert len(draw) == 13
    assert draw.shots is None
    assert [e.label for e in draw.examples] == sorted(e.label for e in dataset.train)


def test_written_and_read_again(dataset, tmp_path):
    for draw in (draw_seeded(dataset, 4, seed=7), draw_first(dataset, 1), whole_train(dataset)):
        write_draw(draw, tmp_path / "lists" / "draw.json")
        again = read_draw(tmp_path / "lists" / "draw.json", dataset)
        assert again == draw
        assert again.describe() == draw.describe()


def published(tmp_path, entries):
    file = tmp_path / "shot_1-seed_1.json"
    data = [{"impath": f"./data/toy/2750/{path}", "label": label, "classname": ""} for path, label in entries]
    file.write_text(json.dumps({"train": {"data": data, "indices": []}, "val": {"data": [], "indices": []}}))
    return file


def test_coops_draws_as_json(dataset, tmp_path):
    file = published(tmp_path, [("C/train_1.jpg", 2), ("A/train_4.jpg", 0), ("B/train_0.jpg", 1)])
    draw = read_draw(file, dataset, shots=1, seed=1)
    assert ids(draw) == ["A/train_4.jpg", "B/train_0.jpg", "C/train_1.jpg"]
    assert (draw.shots, draw.seed) == (1, 1)
    assert "CoOp's draw, shot_1-seed_1.json" in draw.rule
    assert read_draw(file, dataset).shots == 1


def test_a_photo_drawn_twice_stays_twice(dataset, tmp_path):
    """CoOp fills classes that are short of photos by drawing with replacement."""
    entries = [("C/train_1.jpg", 2)] * 3 + [(f"{c}/train_{n}.jpg", "AB".index(c)) for c in "AB" for n in range(3)]
    draw = read_draw(published(tmp_path, entries), dataset, shots=3)
    assert ids(draw)[6:] == ["C/train_1.jpg"] * 3


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        pytest.param([("A/other.jpg", 0)], {}, "is not in the train part", id="unknown"),
        pytest.param([("A/train_0.jpg", 1)], {}, "has label 1, the data set says 0", id="label"),
        pytest.param([("A/train_0.jpg", 0)], {"shots": 1}, "0 exemplars of class 1", id="class"),
        pytest.param([("A/train_0.jpg", True)], {}, "is no few-shot list", id="bool"),
        pytest.param([], {}, "is no few-shot list", id="empty"),
    ],
)
def test_lists_that_do_not_fit(dataset, tmp_path, entries, options, message):
    with pytest.raises(DatasetError, match=message):
        read_draw(published(tmp_path, entries), dataset, **options)


def test_lists_of_another_split_and_pickles(dataset, tmp_path):
    file = tmp_path / "draw.json"
    write_draw(draw_first(dataset, 1), file)
    with pytest.raises(DatasetError, match="was drawn from split_sha256 'hash', the data set has 'other'"):
        read_draw(file, replace(dataset, split_sha256="other"))
    with pytest.raises(DatasetError, match="has 1 exemplars of class 0 .A., expected 2"):
        read_draw(file, dataset, shots=2)
    for name in ("shot_1-seed_1.pkl", "renamed.json"):
        (tmp_path / name).write_bytes(pickle.dumps({"train": []}))
        with pytest.raises(DatasetError, match="pickle"):
            read_draw(tmp_path / name, dataset)
    with pytest.raises(MissingAssetError, match="there is no few-shot list at"):
        read_draw(tmp_path / "none.json", dataset)


@pytest.mark.parametrize("shots", [0, -1, True, 1.5])
def test_shots_must_be_whole(dataset, shots):
    with pytest.raises(DatasetError, match="must be a whole number of at least 1"):
        draw_seeded(dataset, shots, 1)


def test_no_train_part(dataset):
    with pytest.raises(DatasetError, match="toy has no train part"):
        draw_first(replace(dataset, train=()), 1)


@pytest.mark.parametrize("limit", range(1, 16))
def test_stratified_sample(dataset, limit):
    chosen = stratified_sample(dataset.test, limit, seed=4)
    assert len(chosen) == limit
    assert chosen == stratified_sample(dataset.test, limit, seed=4)
    assert [e for e in dataset.test if e in chosen] == chosen
    counts = Counter(e.label for e in chosen)
    for label, size in enumerate((9, 5, 1)):
        assert abs(counts[label] - limit * size / 15) < 1


def test_limit_must_be_whole(dataset):
    assert stratified_sample(dataset.test, 99) == list(dataset.test)
    with pytest.raises(DatasetError, match="limit=0 must be"):
        stratified_sample(dataset.test, 0)
