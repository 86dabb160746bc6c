"""Corrections teach: exemplars of classes whose words say nothing, scores to trust; and other photos gain."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rar_mmdet import RegionRecognizer
from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.detectors import Detected, read_box_file
from rar_mmdet.errors import ConfigError, MemoryMismatchError, RecordFileError
from rar_mmdet.labelling import Labeller, LabelRun, read_words
from rar_mmdet.labelling.corrections import corrections_of_boxes, is_corrections
from rar_mmdet.labelling.learning import LEARNED, read_learned
from rar_mmdet.memory import TextMemory
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import FakeEncoder

COLOURS = {"kiln": (200, 40, 40), "anvil": (40, 200, 40), "lathe": (40, 40, 200), "press": (200, 200, 40)}
WORDS = list(COLOURS)  # the encoder of fakes cannot know what they look like


class Quarters:
    """Four boxes in each photo, the quarters."""

    boxes = torch.tensor([[0.0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]])

    def detect(self, images, paths=None):
        return [Detected(self.boxes, torch.full((4,), 0.9)) for _ in images]


def write_world(folder, count, seed):
    """Photos of four coloured quarters, and what each shows."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    truth = {}
    for number in range(count):
        pixels = np.zeros((64, 64, 3), np.float64)
        kinds = rng.integers(len(WORDS), size=4)
        for kind, box in zip(kinds, Quarters.boxes.int().tolist(), strict=True):
            pixels[box[1] : box[3], box[0] : box[2]] = COLOURS[WORDS[kind]]
        noisy = (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:02d}.png")
        truth |= {(f"{number:02d}.png", region): int(kind) for region, kind in enumerate(kinds)}
    return folder, truth


def labeller(words=WORDS, encoder=None, **more):
    recognizer = RegionRecognizer(
        cropper=RegionCropper(),
        encoder=encoder or FakeEncoder(),
        memory=TextMemory(cache_dir=None),
        category_names=["anything"],
    )
    return Labeller(recognizer, words, Quarters(), 0.0, **more)


def share_right(run, truth):
    told = {(s.name, r.region): r.category_ids[0] for s, records in run.regions() for r in records}
    return np.mean([told[key] == truth[key] for key in truth])


@pytest.fixture
def worlds(tmp_path):
    return write_world(tmp_path / "first", 12, 0), write_world(tmp_path / "second", 8, 1)


@pytest.fixture
def taught(worlds, tmp_path):
    (folder, truth), _ = worlds
    run = LabelRun(labeller(), folder, tmp_path / "out")
    run.run()
    return run, run.correct(truth)


def test_a_second_run_on_other_photos_is_better(worlds, taught, tmp_path):
    (_, first), (folder, truth) = worlds
    run, learned = taught
    assert share_right(run, first) < 0.6
    assert learned.alpha > 0
    assert sorted(learned.classes) == sorted(WORDS[kind] for kind in first.values())
    before = LabelRun(labeller(), folder, tmp_path / "before")
    before.run()
    after = LabelRun(labeller(), folder, tmp_path / "after", learned=tmp_path / "out")
    after.run()
    assert share_right(before, truth) < 0.6 < 0.95 < share_right(after, truth)
    # What was learned stays with the run: the same command goes on with it, another one is refused.
    again = LabelRun(labeller(), folder, tmp_path / "after", learned=tmp_path / "out")
    assert again.labeller.learned.classes == learned.classes
    with pytest.raises(ConfigError, match=r"another run \(learned differ\)"):
        LabelRun(labeller(), folder, tmp_path / "after")


def test_scores_are_judged_by_exemplars_of_other_photos(taught):
    """Had each box seen itself as an exemplar, all labels would count as right and sure."""
    _, learned = taught
    assert len(learned.right) == 48
    assert 0.9 < learned.right.mean() <= 1.0
    assert not len(learned.others)  # everything was reviewed


def test_what_was_learned_is_read_back(taught, tmp_path):
    _, learned = taught
    found = read_learned(tmp_path / "out" / LEARNED)
    assert (found.classes, found.photos, found.labels) == (learned.classes, learned.photos, learned.labels)
    assert (found.encoder, found.alpha, found.beta) == (learned.encoder, learned.alpha, learned.beta)
    torch.testing.assert_close(found.keys, learned.keys)
    np.testing.assert_array_equal(found.signs, learned.signs)
    assert found.describe() == learned.describe()
    assert "48 exemplars of 4 classes (weight" in found.describe()
    file = tmp_path / "out" / LEARNED
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RecordFileError, match="is no file of what was learned .*; apply corrections again"):
        read_learned(file)


def test_applying_twice_counts_once_and_later_corrections_win(taught, worlds, tmp_path):
    run, learned = taught
    key = next(iter(worlds[0][1]))
    again = run.correct({key: None})
    assert len(again.right) == len(learned.right)
    assert len(again.classes) == len(learned.classes) - 1
    assert run.corrections()[key] is None
    assert len(run.corrections()) == 48


def test_a_few_corrections_keep_the_rest_in_sight(worlds, tmp_path):
    (folder, truth), _ = worlds
    run = LabelRun(labeller(), folder, tmp_path / "out")
    run.run()
    learned = run.correct(dict(list(truth.items())[:10]))
    assert (len(learned.right), len(learned.others)) == (10, 38)


def test_another_encoder_is_refused(taught, worlds, tmp_path):
    _, (folder, _) = worlds
    other = LabelRun(labeller(encoder=FakeEncoder(seed=3)), folder, tmp_path / "other", learned=tmp_path / "out")
    with pytest.raises(MemoryMismatchError, match="what was learned is of encoder fake-16-0, this run has fake-16-3"):
        other.run()


def test_what_precision_and_learned_need(worlds, tmp_path):
    (folder, _), _ = worlds
    run = LabelRun(labeller(), folder, tmp_path / "out", precision=0.9)
    run.run()
    with pytest.raises(ConfigError, match=r"--precision 0.9 needs reviewed labels .* --apply, .* or ask for a score"):
        run.write(["coco"])
    with pytest.raises(ConfigError, match=r"precision must lie between 0 and 1, got 95; 0.95 asks for 95 %"):
        LabelRun(labeller(), folder, tmp_path / "out", precision=95)
    with pytest.raises(ConfigError, match=r"nothing was learned in .*out \(no learned.safetensors\): give the --out"):
        LabelRun(labeller(), folder, tmp_path / "new", learned=tmp_path / "out")


def annotated(path, truth, names=WORDS, photo="{}"):
    photos = sorted({name for name, _ in truth})
    boxes = Quarters.boxes.tolist()
    content = {
        "images": [{"id": i, "file_name": photo.format(name)} for i, name in enumerate(photos, 1)],
        "annotations": [
            {"id": i, "image_id": photos.index(name) + 1, "category_id": kind + 1,
             "bbox": [boxes[region][0] + 2, boxes[region][1], 29, 31]}
            for i, ((name, region), kind) in enumerate(truth.items(), 1) if kind is not None
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_annotated_boxes_are_corrections(worlds, tmp_path):
    (folder, truth), _ = worlds
    run = LabelRun(labeller(), folder, tmp_path / "out")
    run.run()
    some = {key: kind for key, kind in truth.items() if key[0] < "05"}
    some[next(iter(some))] = None  # nothing is there
    file = annotated(tmp_path / "truth.json", some)
    assert not is_corrections(file)
    found, unknown = corrections_of_boxes(read_box_file(file), run.labeller.words, run.regions())
    assert (found, unknown) == (some, [])
    named = annotated(tmp_path / "named.json", some, ["kiln", "Anvil", "lathe", "oven"])
    found, unknown = corrections_of_boxes(read_box_file(named), run.labeller.words, run.regions())
    assert unknown == ["oven"]
    assert found == {key: None if kind == 3 else kind for key, kind in some.items()}
    far = annotated(tmp_path / "far.json", some, photo="x{}")
    with pytest.raises(RecordFileError, match="has none of the photos of this run .* such as x00.png"):
        corrections_of_boxes(read_box_file(far), run.labeller.words, run.regions())


def test_exemplar_photos_of_a_word(worlds, tmp_path):
    _, (folder, truth) = worlds
    for word, colour in COLOURS.items():
        (tmp_path / "like" / word).mkdir(parents=True)
        for seed in range(3):
            noise = np.random.default_rng(seed).normal(0, 12, (32, 32, 3))
            Image.fromarray((noise + colour).clip(0, 255).astype(np.uint8)).save(
                tmp_path / "like" / word / f"{seed}.png"
            )
    (tmp_path / "words.txt").write_text("".join(f"{word} @ like/{word}\n" for word in WORDS))
    words = read_words(tmp_path / "words.txt")
    assert words.describe() == "4 classes, 4 phrases, 4 classes with exemplar photos"
    run = LabelRun(labeller(words), folder, tmp_path / "out")
    run.run()
    assert share_right(run, truth) > 0.95


def test_the_command_applies_learns_and_keeps_a_precision(tmp_path, capsys):
    """The demo's photos: their own boxes are the truth, so that nearly all is right."""
    photos = Path(__file__).parents[2] / "demo" / "photos"
    line = [
        "label",
        str(photos),
        "--words",
        str(photos / "words.txt"),
        "--embedded",
        "--boxes",
        str(photos / "boxes.json"),
    ]
    assert rar_mmdet([*line, "--out", str(tmp_path / "a"), "--apply", str(photos / "boxes.json")]) == 0
    shown = capsys.readouterr().out
    assert "learned    30 reviewed labels, 30 of them right (too few right or wrong ones to judge scores by)" in shown
    assert "30 corrected by hand" in shown
    more = [*line, "--out", str(tmp_path / "b"), "--learned", str(tmp_path / "a")]
    assert rar_mmdet([*more, "--precision", "0.95"]) == 2
    assert "--precision 0.95 needs reviewed labels" in capsys.readouterr().err
    assert rar_mmdet([*more, "--keep-unsure", str(tmp_path / "unsure.json")]) == 0
    assert "learned    30 reviewed labels" in capsys.readouterr().out
    assert json.loads((tmp_path / "unsure.json").read_text()) is not None


@pytest.mark.parametrize(
    ("quality", "models"),
    [
        ("fast", ["llmdet_tiny", "SigLIP2"]),
        ("good", ["llmdet_tiny", "ViT-L-16-SigLIP2-384", "Qwen3-VL-2B"]),
        ("best", ["llmdet_large", "SO400M", "Qwen3-VL-8B"]),
    ],
)
def test_qualities_say_what_they_take_and_what_to_fetch(quality, models, worlds, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (folder, _), _ = worlds
    (tmp_path / "words.txt").write_text("kiln\nanvil\n")
    line = ["label", str(folder), "--words", str(tmp_path / "words.txt"), "--out", str(tmp_path / "out")]
    assert rar_mmdet([*line, "--quality", quality]) == 2
    told = capsys.readouterr()
    assert [row.split()[0] for row in told.out.splitlines()] == ["detector", "encoder", "ranker"]
    assert told.out.count("B, Apache-2.0") == len(models)
    assert "see to what is not there, then give the command again" in told.err
    page = (Path(__file__).parents[2] / "docs" / "labelling.md").read_text(encoding="utf-8")
    for model in models:
        assert model in told.err
    for repository in re.findall(r"hf download ([^\s`]+)", told.err):
        assert f"\nhf download {repository}" in page  # the page says what to type, too
    assert not (tmp_path / "out").exists()
