"""tools/calibrate_regions.py on a tiny world with a tiny random CLIP."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from skimage import data

from rar_mmdet.regions import AreaScale, BlurBackground, RegionCropper, read_image

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
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibrate_regions", ROOT / "tools" / "calibrate_regions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibrate_regions"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


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
def table(world: Path, tool: ModuleType) -> list[dict]:
    assert tool.main([str(world / "config.py"), "--out", str(world / "out"), *SWEEP]) == 0
    return json.loads((world / "out" / "table.json").read_text())


def test_every_cell_is_there(table: list[dict]) -> None:
    for sigma in (0, 2):
        scales = [row["scale"] for row in table if row["sigma"] == sigma]
        assert scales[:3] == [1, 1.6, 2.8]
        assert [2.8, 1.6, 1.0] in scales  # the paper's choice
    assert all(0 <= row[name] <= 100 for row in table for name in ("AP", "APs", "APm", "APl"))


def test_second_run_encodes_nothing_and_says_the_same(
    world: Path,
    tool: ModuleType,
    table: list[dict],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(RegionCropper, "crop", lambda *_: pytest.fail("encoded again"))
    assert tool.main([str(world / "config.py"), "--out", str(world / "out"), *SWEEP]) == 0
    assert json.loads((world / "out" / "table.json").read_text()) == table
    printed = capsys.readouterr().out
    assert "no blur" in printed
    assert "blur, sigma 2 px" in printed


def test_best_policy_is_a_config(world: Path, table: list[dict]) -> None:
    cropper = Config.fromfile(world / "out" / "best_policy.py").model.recognizer.cropper
    best = max(table, key=lambda row: row["AP"])
    assert cropper.size == 32
    assert cropper.background == {"type": "BlurBackground", "sigma": best["sigma"], "feather": 3}
    assert cropper.scale.type == ("FixedScale" if isinstance(best["scale"], float) else "AreaScale")


@pytest.mark.parametrize("cropper", [{"size": 32}, {"scale": {"type": "FixedScale"}, "background": None}])
@pytest.mark.parametrize("keys", [["model", "recognizer"], ["model", "roi_head", "recognizer"]])
@pytest.mark.parametrize("scale", [1.4, [2.0, 1.8, 1.6]])
def test_snippet_sets_the_cropper_and_nothing_else(
    tmp_path: Path, tool: ModuleType, cropper: dict, keys: list[str], scale: float | list[float]
) -> None:
    content: dict = {"cropper": cropper, "num_candidates": 5}
    for key in reversed(keys):
        content = {key: content}
    base, out = tmp_path / "base.py", tmp_path / "out"
    out.mkdir()
    Config(content).dump(base)
    ap, policy = tool.best_policy([{"AP": 7.0, "scale": scale, "sigma": 3.0}], 5.0, (900.0, 6400.0))
    tool.write_snippet({**cropper, **policy}, keys, "Best", base, out)
    _, settings = tool.find_recognizer(Config.fromfile(out / "best_policy.py"), base)
    area = {"type": "AreaScale", "small": 2.0, "medium": 1.8, "large": 1.6, "bounds": (900.0, 6400.0)}
    fixed = {"type": "FixedScale", "factor": 1.4}
    background = {"type": "BlurBackground", "sigma": 3.0, "feather": 5.0}
    expected = {**cropper, "scale": fixed if scale == 1.4 else area, "background": background}
    assert settings == {"cropper": expected, "num_candidates": 5}
    assert ap == 7


def test_figure_is_drawn(world: Path, table: list[dict]) -> None:
    assert Image.open(world / "out" / "crop_scale.png").size[0] > 1000
    assert "<svg" in (world / "out" / "crop_scale.svg").read_text()


def build(tool: ModuleType, world: Path) -> tuple[Any, Any]:
    """The recognizer of the config and the regions of its calib file."""
    settings = Config.fromfile(world / "config.py").model.recognizer
    recognizer = tool.build_recognizer({**settings, "vocabulary": str(world / "ann_calib.json"), "ranker": None})
    recognizer.encoder.load("cpu")
    return recognizer, tool.find_regions(json.loads((world / "ann_calib.json").read_text()), world, None)


def test_scale_by_area_is_picked_from_fixed_scales(
    world: Path, tool: ModuleType, table: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows taken from the cells are what cropping with `AreaScale` gives, with the config's bounds and feather."""
    recognizer, regions = build(tool, world)
    cropper = replace(recognizer.cropper, scale=AreaScale(bounds=(900, 6400)), background=BlurBackground(2, feather=3))
    whole = [
        recognizer.encoder.encode_images(cropper.crop(read_image(file), regions.boxes_xyxy[regions.image_of == row]))
        for row, file in enumerate(regions.files)
    ]
    scored = []

    def score(embeddings: torch.Tensor) -> dict[str, float]:
        scored.append(embeddings)
        return {"AP": 0.0}

    embed = tool.Embedder(recognizer, regions, world / "out" / "embeddings")
    monkeypatch.setattr(RegionCropper, "crop", lambda *_: pytest.fail("encoded again"))
    tool.sweep(embed, score, [1.0, 1.6, 2.8], [2.0], (900, 6400))
    torch.testing.assert_close(scored[-1], torch.cat(whole), atol=1e-5, rtol=0)  # the paper's factors come last


def test_embeddings_on_disk_are_those_of_these_pixels(
    world: Path, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer, regions = build(tool, world)
    photos = [tmp_path / file.name for file in regions.files]
    for file, photo in zip(regions.files, photos, strict=True):
        photo.write_bytes(file.read_bytes())
    regions = replace(regions, files=photos)

    def embed() -> torch.Tensor:
        return tool.Embedder(recognizer, regions, tmp_path / "kept")(1.0, 2.0)

    first = embed()
    Image.fromarray(np.full((200, 320, 3), 200, dtype=np.uint8)).save(photos[0])
    assert not torch.equal(embed()[0], first[0])
    photos[0].write_bytes((world / photos[0].name).read_bytes())
    torch.testing.assert_close(embed(), first)
    assert len(list((tmp_path / "kept").iterdir())) == 3
    monkeypatch.setattr(tool, "CROPS_VERSION", tool.CROPS_VERSION + 1)
    embed()
    other = replace(recognizer.cropper, background=BlurBackground(10, feather=4))
    recognizer = SimpleNamespace(cropper=other, encoder=recognizer.encoder)
    embed()
    assert len(list((tmp_path / "kept").iterdir())) == 5


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
    ],
)
def test_errors_say_what_to_give(
    world: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert tool.main([argument.replace("{w}", str(world)) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
