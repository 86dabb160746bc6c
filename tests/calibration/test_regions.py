"""Calibration of the crops on a tiny world with a tiny random CLIP."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from skimage import data

from rar_mmdet.calibration import Embedder, Scorer, crops, find_regions, sweep
from rar_mmdet.calibration.command import find_recognizer, training_set
from rar_mmdet.calibration.crops import Picked, best_policy
from rar_mmdet.calibration.report import write_snippet
from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.components import build_recognizer
from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import AnnotationFileError, ConfigError, ImageReadError, InvalidBoxError, MissingAssetError
from rar_mmdet.regions import AreaScale, BlurBackground, FixedScale, RegionCropper, read_image
from rar_mmdet.structures import Shortlist
from rar_mmdet.testing import FakeEncoder


def main(arguments):
    return rar_mmdet(["calibrate", "regions", *arguments])


ROOT = Path(__file__).parents[2]
BOXES = [
    [10, 10, 20, 18],
    [60, 20, 25, 25],
    [100, 50, 60, 50],
    [20, 80, 50, 70],
    [180, 20, 120, 140],
    [40, 40, 130, 110],
]
SWEEP = ["--scales", "1", "1.6", "2.8", "--sigmas", "0", "2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, photos, annotations and a config whose test annotations have a calib file beside."""
    root = tmp_path_factory.mktemp("world")
    sys.path.insert(0, str(ROOT / "tests" / "encoders"))
    from tiny import write_model

    write_model(root / "clip")
    photos = [data.coffee()[:200, :320], data.chelsea()[:200, :320]]
    images = [
        {
            "id": 7 + i,
            "file_name": f"{i}.png",
            "height": 200,
            "width": 320,
            "neg_category_ids": [4],
            "not_exhaustive_category_ids": [],
        }
        for i in range(2)
    ]
    for image, photo in zip(images, photos, strict=True):
        Image.fromarray(photo).save(root / image["file_name"])
    annotations = [
        {
            "id": 1 + i,
            "image_id": 7 + i % 2,
            "category_id": 1 + i % 3,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": [],
        }
        for i, box in enumerate(BOXES * 2)
    ]
    names = ["red star", "blue cup", "cup_(drink)", "never seen"]
    categories = [{"id": 1 + i, "name": name, "frequency": "rcff"[i]} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "ann_calib.json").write_text(json.dumps(content))
    (root / "config.py").write_text(
        "model = dict(recognizer=dict(vocabulary=r'{r}/ann_test.json', cropper=dict(type='RegionCropper', size=32, "
        "scale=dict(type='AreaScale', bounds=(900, 6400)), "
        "background=dict(type='BlurBackground', feather=3)), encoder=dict(type='OpenClipEncoder', "
        "model=r'local-dir:{r}/clip'), memory=dict(type='TextMemory', cache_dir=r'{r}/cache'), num_candidates=2, "
        "ranker=dict(type='NeverBuilt')))\n"
        "test_dataloader = dict(dataset=dict(data_root=r'{r}', ann_file='ann_test.json'))\n".replace("{r}", str(root))
    )
    return root


@pytest.fixture(scope="module")
def table(world: Path) -> list[dict]:
    assert main([str(world / "config.py"), "--out", str(world / "out"), *SWEEP]) == 0
    return json.loads((world / "out" / "table.json").read_text())


def test_every_cell_is_there(table: list[dict]) -> None:
    assert list(dict.fromkeys(row["window"] for row in table)) == ["square", "pad", "warp", "cover"]
    for sigma in (0, 2):
        scales = [row["scale"] for row in table if (row["window"], row["sigma"]) == ("square", sigma)]
        assert scales[:3] == [1, 1.6, 2.8]
        assert [2.8, 1.6, 1.0] in scales  # the paper's choice
    assert all(0 <= row[name] <= 100 for row in table for name in ("AP", "APs", "APm", "APl"))
    assert all(row["AP"] > 20 for row in table)  # all four names of a box are scored, as in a test, not the best alone


def test_other_windows_are_swept_at_the_best_blur_so_far(world: Path, table: list[dict]) -> None:
    recognizer, regions = build(world)
    score = Scorer(recognizer.memory, TopPairs(), regions, json.loads((world / "ann_calib.json").read_text()))
    for window in ("pad", "warp", "cover"):
        before = table[: [row["window"] for row in table].index(window)]
        rows = [row for row in table if row["window"] == window]
        assert {row["sigma"] for row in rows} == {max(before, key=lambda row: row["AP"])["sigma"]}
        assert [row["scale"] for row in rows][:3] == [1, 1.6, 2.8]
        # The row is what crops of that window score.
        background = BlurBackground(rows[0]["sigma"], feather=3)
        cropper = replace(recognizer.cropper, window=window, scale=FixedScale(1.6), background=background)
        vectors = [
            recognizer.encoder.encode_images(cropper.crop(read_image(file), regions.boxes_xyxy[regions.rows(image)]))
            for image, file in enumerate(regions.files)
        ]
        scored = score(Picked((torch.cat(vectors).numpy(),), np.zeros(len(regions), np.int64)))
        assert scored["AP"] == pytest.approx(rows[1]["AP"], abs=1e-3)


def test_second_run_encodes_nothing_and_says_the_same(
    world: Path,
    table: list[dict],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(RegionCropper, "crop", lambda *_: pytest.fail("encoded again"))
    assert main([str(world / "config.py"), "--out", str(world / "out"), *SWEEP]) == 0
    assert json.loads((world / "out" / "table.json").read_text()) == table
    printed = capsys.readouterr().out
    assert "square, no blur" in printed
    assert "square, blur, sigma 2 px" in printed
    assert "warp, " in printed


def test_best_policy_is_a_config(world: Path, table: list[dict]) -> None:
    cropper = Config.fromfile(world / "out" / "best_policy.py").model.recognizer.cropper
    best = max(table, key=lambda row: row["AP"])
    assert cropper.size == 32
    assert cropper.window == best["window"]
    assert cropper.background == {"type": "BlurBackground", "sigma": best["sigma"], "feather": 3}
    assert cropper.scale.type == ("FixedScale" if isinstance(best["scale"], float) else "AreaScale")


@pytest.mark.parametrize("cropper", [{"size": 32}, {"scale": {"type": "FixedScale"}, "background": None}])
@pytest.mark.parametrize("keys", [["model", "recognizer"], ["model", "roi_head", "recognizer"]])
@pytest.mark.parametrize("scale", [1.4, [2.0, 1.8, 1.6]])
def test_snippet_sets_the_cropper_and_nothing_else(
    tmp_path: Path, cropper: dict, keys: list[str], scale: float | list[float]
) -> None:
    content: dict = {"cropper": cropper, "num_candidates": 5}
    for key in reversed(keys):
        content = {key: content}
    base, out = tmp_path / "base.py", tmp_path / "out"
    out.mkdir()
    Config(content).dump(base)
    ap, policy = best_policy([{"AP": 7.0, "scale": scale, "sigma": 3.0, "window": "pad"}], 5.0, (900.0, 6400.0))
    write_snippet({**cropper, **policy}, ".".join([*keys, "cropper"]), "Best", base, out / "best_policy.py")
    where, settings = find_recognizer(Config.fromfile(out / "best_policy.py"), base)
    assert where == ".".join(keys)
    area = {"type": "AreaScale", "small": 2.0, "medium": 1.8, "large": 1.6, "bounds": (900.0, 6400.0)}
    fixed = {"type": "FixedScale", "factor": 1.4}
    background = {"type": "BlurBackground", "sigma": 3.0, "feather": 5.0}
    expected = {**cropper, "window": "pad", "scale": fixed if scale == 1.4 else area, "background": background}
    assert settings == {"cropper": expected, "num_candidates": 5}
    assert ap == 7


def test_figure_is_drawn(world: Path, table: list[dict]) -> None:
    assert Image.open(world / "out" / "crop_scale.png").size[0] > 1000
    assert "<svg" in (world / "out" / "crop_scale.svg").read_text()


def build(world: Path) -> tuple[Any, Any]:
    """The recognizer of the config and the regions of its calib file."""
    settings = Config.fromfile(world / "config.py").model.recognizer
    recognizer = build_recognizer({**settings, "vocabulary": str(world / "ann_calib.json"), "ranker": None})
    recognizer.encoder.load("cpu")
    return recognizer, find_regions(json.loads((world / "ann_calib.json").read_text()), world)


def test_scale_by_area_is_picked_from_fixed_scales(
    world: Path, table: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows taken from the cells are what cropping with `AreaScale` gives, with the config's bounds and feather."""
    recognizer, regions = build(world)
    cropper = replace(recognizer.cropper, scale=AreaScale(bounds=(900, 6400)), background=BlurBackground(2, feather=3))
    whole = [
        recognizer.encoder.encode_images(cropper.crop(read_image(file), regions.boxes_xyxy[regions.rows(image)]))
        for image, file in enumerate(regions.files)
    ]
    scored = []

    def score(embeddings: Picked) -> dict[str, float]:
        scored.append(embeddings[0 : len(regions)])
        return {"AP": 0.0}

    embed = Embedder(recognizer.cropper, recognizer.encoder, regions, world / "out" / "embeddings")
    monkeypatch.setattr(RegionCropper, "crop", lambda *_: pytest.fail("encoded again"))
    sweep(embed, score, regions.boxes_xyxy, [1.0, 1.6, 2.8], [2.0], (900, 6400))
    torch.testing.assert_close(scored[-1], torch.cat(whole), atol=1e-5, rtol=0)  # the paper's factors come last


def test_embeddings_on_disk_are_those_of_these_pixels(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer, regions = build(world)
    photos = [tmp_path / file.name for file in regions.files]
    for file, photo in zip(regions.files, photos, strict=True):
        photo.write_bytes(file.read_bytes())
    regions = replace(regions, files=tuple(photos))

    def embed(cropper: RegionCropper = recognizer.cropper) -> np.ndarray:
        return np.array(Embedder(cropper, recognizer.encoder, regions, tmp_path / "kept")(1.0, 2.0))

    first = embed()
    Image.fromarray(np.full((200, 320, 3), 200, dtype=np.uint8)).save(photos[0])
    assert not np.array_equal(embed()[0], first[0])
    photos[0].write_bytes((world / photos[0].name).read_bytes())
    np.testing.assert_allclose(embed(), first, atol=1e-6)
    assert len(list((tmp_path / "kept").iterdir())) == 3
    monkeypatch.setattr(crops, "CROPS_VERSION", crops.CROPS_VERSION + 1)
    embed()
    embed(replace(recognizer.cropper, background=BlurBackground(10, feather=4)))
    assert len(list((tmp_path / "kept").iterdir())) == 5
    embed(replace(recognizer.cropper, background=BlurBackground(10, feather=4), backend="torch"))  # the same pixels
    assert len(list((tmp_path / "kept").iterdir())) == 5


@pytest.mark.parametrize("most", [1, 2, 5, 1000])
def test_parts_do_not_change_the_outcome(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Memory is bounded by these two numbers; photos with more boxes than one batch are cut in pieces."""
    recognizer, regions = build(world)
    annotations = json.loads((world / "ann_calib.json").read_text())
    none = np.zeros(len(regions), np.int64)
    whole = Embedder(recognizer.cropper, recognizer.encoder, regions, tmp_path / "whole")(1.6, 2.0)
    expected = Scorer(recognizer.memory, TopPairs(), regions, annotations)(Picked((whole,), none))
    monkeypatch.setattr(crops, "CROPS_PER_BATCH", most)
    monkeypatch.setattr(crops, "REGIONS_PER_SEARCH", most)
    parts = Embedder(recognizer.cropper, recognizer.encoder, regions, tmp_path / "parts")(1.6, 2.0)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert Scorer(recognizer.memory, TopPairs(), regions, annotations)(Picked((parts,), none)) == pytest.approx(
        expected
    )
    assert [part for _, rows in regions.parts(most) for part in range(rows.start, rows.stop)] == list(range(12))
    assert [image for images, _ in regions.parts(most) for image in images] == [0, 1]


def test_a_run_that_was_stopped_leaves_no_half_file(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer, regions = build(world)
    embed = Embedder(recognizer.cropper, recognizer.encoder, regions, tmp_path)
    monkeypatch.setattr(RegionCropper, "crop", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed(1.0, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_labels_have_the_order_of_the_file(world: Path, tmp_path: Path) -> None:
    """Ids that do not rise along the file: label 0 is the first category, not that of the lowest id."""
    content = json.loads((world / "ann_calib.json").read_text())
    content["categories"] = content["categories"][::-1]
    regions = find_regions(content, world)
    of_box = {(a["image_id"], tuple(a["bbox"])): a["category_id"] for a in content["annotations"]}
    truth = [
        of_box[regions.image_ids[image], (x1, y1, x2 - x1, y2 - y1)]
        for image in range(2)
        for x1, y1, x2, y2 in regions.boxes_xyxy[regions.rows(image)].tolist()
    ]
    label = {category["id"]: row for row, category in enumerate(content["categories"])}

    class Oracle:
        """A memory for which a vector is its label."""

        def search(self, queries: torch.Tensor, depth: int) -> Shortlist:
            return Shortlist(queries[:, :1].long(), torch.ones(len(queries), 1))

    vectors = np.array([[label[category]] for category in truth], np.float32)
    score = Scorer(Oracle(), TopPairs(), regions, content)
    assert score(Picked((vectors,), np.zeros(12, np.int64)))["AP"] == pytest.approx(100)
    for category in content["categories"]:
        del category["frequency"]  # a COCO file: COCO's AP
    score = Scorer(Oracle(), TopPairs(), regions, content)
    assert score.protocol.name == "coco"
    assert score(Picked((vectors,), np.zeros(12, np.int64)))["AP"] == pytest.approx(100)


ODD = [
    {"bbox": [5, 5, 0, 20]},
    {"bbox": [5, 5, 20, -3]},
    {"bbox": None},
    {},
    {"bbox": [1, 2, 3]},
    {"bbox": ["5", "5", "20", "20"]},
    {"bbox": [5, 5, float("nan"), 20]},
    {"bbox": [5, 5, 20, 20], "iscrowd": 1},
    {"bbox": [5, 5, 20, 20], "ignore": True},
    {"bbox": [400, 5, 20, 20]},
    {"bbox": [5, 5, 20, 20], "image_id": 999},
    {"bbox": [5, 5, 20, 20], "category_id": 999},
    {"bbox": [5, 5, 20, 20], "category_id": None},
]


def test_odd_annotations_are_left_out_and_counted(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = json.loads((world / "ann_calib.json").read_text())
    expected = find_regions(content, world)
    content["annotations"] += [{"id": 100 + i, "image_id": 7, "category_id": 1, **a} for i, a in enumerate(ODD)]
    with caplog.at_level(logging.WARNING):
        found = find_regions(content, world)
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    assert found.annotations == expected.annotations
    assert (
        "12 annotations are left out: 7 without a box of four numbers and an area, 2 of a crowd or to be ignored, "
        "2 of a category that the file does not have, 1 entirely outside the photo" in caplog.text
    )


def test_odd_annotations_change_no_number(world: Path, table: list[dict], tmp_path: Path) -> None:
    content = json.loads((world / "ann_calib.json").read_text())
    for annotation in content["annotations"][:4]:
        del annotation["area"], annotation["id"], annotation["iscrowd"]
    content["annotations"][5] |= {"area": None, "id": 0}
    content["annotations"] += [{"image_id": 7, "category_id": 1, **annotation} for annotation in ODD]
    (tmp_path / "odd.json").write_text(json.dumps(content))
    arguments = [str(world / "config.py"), "--annotations", str(tmp_path / "odd.json"), "--out", str(tmp_path / "out")]
    assert main([*arguments, *SWEEP]) == 0
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == table


def test_sizes_that_the_file_lacks_are_looked_up(world: Path) -> None:
    content = json.loads((world / "ann_calib.json").read_text())
    for image in content["images"]:
        image.update(height=None, width=None)
    assert find_regions(content, world).image_hws == ((200, 320), (200, 320))
    assert len(find_regions(content, world, limit=1).files) == 1


def test_boxes_in_another_format_are_suspected(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = json.loads((world / "ann_calib.json").read_text())
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    find_regions(content, world)
    assert "they seem to be xyxy, where xywh is expected" in caplog.text


def test_a_photo_turned_since_it_was_annotated_is_refused(world: Path, tmp_path: Path) -> None:
    _, regions = build(world)
    turned = tmp_path / "turned.png"
    Image.fromarray(np.zeros((320, 200, 3), np.uint8)).save(turned)
    embed = Embedder(RegionCropper(size=32), FakeEncoder(), replace(regions, files=(turned, turned)), tmp_path / "out")
    with pytest.raises(ImageReadError, match="photo .*turned.png is 200x320 px but its annotation says 320x200"):
        embed(1.0, 0.0)


def test_a_box_that_cannot_be_cropped_is_named_with_its_photo(world: Path, tmp_path: Path) -> None:
    _, regions = build(world)
    regions = replace(regions, boxes_xyxy=regions.boxes_xyxy + 5000)
    with pytest.raises(InvalidBoxError, match="photo .*0.png: 6 of 6 boxes cannot be cropped"):
        Embedder(RegionCropper(size=32), FakeEncoder(), regions, tmp_path)(1.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"images": [{"file_name": "0.png"}]}, AnnotationFileError, r"images\[0\] = .*has no id"),
        ({"images": [{"id": 7, "height": 200, "width": 320}]}, AnnotationFileError, "image 7 has no file_name"),
        ({"annotations": []}, MissingAssetError, "no usable boxes"),
        ({"annotations": None}, AnnotationFileError, "no list of 'annotations'"),
    ],
)
def test_files_that_cannot_be_used_are_refused(world: Path, changes: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        find_regions({**json.loads((world / "ann_calib.json").read_text()), **changes}, world)


def test_training_set_of_a_config(world: Path) -> None:
    nested = {"dataset": {"data_root": str(world), "ann_file": "ann_calib.json", "data_prefix": {"img": "photos"}}}
    config = Config({"train_dataloader": {"dataset": nested}})
    assert training_set(config, None, None) == (world / "ann_calib.json", world / "photos")
    assert training_set(config, None, world) == (world / "ann_calib.json", world)
    with pytest.raises(ConfigError, match="no data set with one ann_file; give --annotations"):
        training_set(Config({"train_dataloader": {"dataset": {"datasets": []}}}), None, None)
    tested = Config({"test_dataloader": {"dataset": {"data_root": str(world), "ann_file": "ann_test.json"}}})
    assert training_set(tested, None, None)[0] == world / "ann_calib.json"
    tested.test_dataloader.dataset.ann_file = "lvis_val.json"
    with pytest.raises(MissingAssetError, match=r"found at .*lvis_calib.json or .*lvis_train.json; name them"):
        training_set(tested, None, None)


def test_a_config_has_one_recognizer(tmp_path: Path) -> None:
    for model, count in ({}, 0), ({"a": {"recognizer": {}}, "b": {"recognizer": {}}}, 2):
        with pytest.raises(ConfigError, match=f"x.py has {count} recognizers in its model"):
            find_recognizer(Config({"model": model}), tmp_path / "x.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["{w}/gone.py"], "gone.py does not exist", id="config"),
        pytest.param(["{w}/config.py", "--annotations", "{w}/gone.json"], "gone.json; name them", id="annotations"),
        pytest.param(["{w}/config.py", "--images", "{w}/clip"], "give the folder of the images", id="images"),
        pytest.param(
            ["{w}/config.py", "--cfg-options", "model.recognizer.cropper.scale.type=SmoothAreaScale"],
            "SmoothAreaScale, which cannot be swept; FixedScale and AreaScale can. To calibrate without it: "
            "--cfg-options model.recognizer.cropper.scale=None",
            id="scale",
        ),
        pytest.param(
            ["{w}/config.py", "--cfg-options", "model.recognizer.cropper.background.type=GreyBackground"],
            "GreyBackground, which cannot be swept; NoBackground and BlurBackground can",
            id="background",
        ),
        pytest.param(
            ["{w}/config.py", "--cfg-options", "model.recognizer.encoder.type=OpenClipRegionEncoder"],
            "encoder is OpenClipRegionEncoder, which encodes boxes of whole photos: crops cannot be calibrated with it",
            id="encoder",
        ),
    ],
)
def test_errors_say_what_to_give(
    world: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([argument.replace("{w}", str(world)) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
