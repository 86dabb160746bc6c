"""Few-shot entries, further texts, and changed vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from rar_mmdet.errors import (
    AnnotationFileError,
    ConfigError,
    ImageReadError,
    InvalidBoxError,
    MissingAssetError,
    VocabularyError,
)
from rar_mmdet.files.images import read_image
from rar_mmdet.memory import (
    EntryKind,
    Exemplar,
    TextMemory,
    encode_exemplars,
    exemplars,
    read_exemplars,
    sample_exemplars,
)
from rar_mmdet.regions import AreaScale, BlurBackground, RegionCropper
from rar_mmdet.testing import FakeEncoder, make_image

NAMES = ["cup", "red star", "bow_(weapon)", "never seen"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six photos named as LVIS names them; categories 0, 1 and 2 have 6, 4 and 2 regions, one crowd, one speck."""
    (tmp_path / "val2017").mkdir()
    images, annotations = [], []
    for index in range(6):
        Image.fromarray(make_image(seed=index)).save(tmp_path / "val2017" / f"{index}.png")
        images.append({"id": 10 + index, "coco_url": f"http://x.org/val2017/{index}.png"})
        for category_id in range(3):
            if index < 6 - 2 * category_id:
                box = [5.0 + index, 4.0 + category_id, 20.0, 12.0]
                annotations.append(
                    {"id": len(annotations), "image_id": 10 + index, "category_id": 100 + category_id, "bbox": box}
                )
    annotations.append({"id": 90, "image_id": 10, "category_id": 103, "bbox": [0, 0, 30, 30], "iscrowd": 1})
    annotations.append({"id": 91, "image_id": 10, "category_id": 103, "bbox": [0, 0, 30, 1]})
    categories = [
        {"id": 100 + i, "name": name, "synonyms": [name, f"other {name}"], "def": f"what {name} is"}
        for i, name in enumerate(NAMES)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    return tmp_path / "lvis.json"


def crop(image: np.ndarray, boxes: torch.Tensor) -> torch.Tensor:
    """The boxes' pixels as 32 x 32 crops, in the plainest way."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
    parts = [pixels[:, int(y1) : int(y2), int(x1) : int(x2)].float() for x1, y1, x2, y2 in boxes.tolist()]
    return torch.stack([torch.nn.functional.interpolate(p[None], 32)[0] for p in parts]).to(torch.uint8)


@pytest.mark.parametrize(("shots", "counts"), [(1, [1, 1, 1]), (3, [3, 3, 2]), (9, [6, 4, 2])])
def test_sample_takes_shots_per_category_and_no_specks(dataset: Path, shots: int, counts: list[int]) -> None:
    chosen = sample_exemplars(read_exemplars(dataset, dataset.parent, NAMES), shots=shots)
    assert [sum(e.category_id == c for e in chosen) for c in range(4)] == [*counts, 0]
    assert len({e.source for e in chosen}) == len(chosen)
    assert all(Path(e.image).is_file() for e in chosen)
    assert chosen == sample_exemplars(read_exemplars(dataset, dataset.parent, NAMES), shots=shots)


def test_sample_depends_on_the_seed(dataset: Path) -> None:
    draws = {tuple(sample_exemplars(read_exemplars(dataset, dataset.parent, NAMES), shots=2, seed=s)) for s in range(8)}
    assert len(draws) > 1


def test_exemplars_equal_encoding_each_region_alone(dataset: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    chosen = sample_exemplars(read_exemplars(dataset, dataset.parent, NAMES), shots=3)
    entries = encode_exemplars(encoder, crop, chosen, parts_dir=tmp_path / "parts")
    assert (entries.kinds == EntryKind.IMAGE).all()
    by_source = {e.source: e for e in chosen}
    for vector, category_id, source in zip(entries.vectors, entries.category_ids, entries.sources, strict=True):
        own = by_source[source]
        assert own.category_id == category_id
        alone = encoder.encode_images(crop(read_image(own.image), torch.tensor([own.box_xyxy])))
        torch.testing.assert_close(vector, alone[0])


def test_a_stopped_exemplar_build_goes_on(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplars, "IMAGES_PER_PART", 2)
    chosen = sample_exemplars(read_exemplars(dataset, dataset.parent, NAMES), shots=9)
    cropped: list[int] = []

    def counting(image: np.ndarray, boxes: torch.Tensor) -> torch.Tensor:
        if len(cropped) == 3:
            raise KeyboardInterrupt
        cropped.append(len(boxes))
        return crop(image, boxes)

    with pytest.raises(KeyboardInterrupt):
        encode_exemplars(FakeEncoder(), counting, chosen, parts_dir=tmp_path / "parts")
    cropped[:] = [0] * 10  # far from the stop
    entries = encode_exemplars(FakeEncoder(), counting, chosen, parts_dir=tmp_path / "parts")
    assert len(cropped) == 14  # the two photos of the finished part were not cropped again
    assert torch.equal(entries.vectors, encode_exemplars(FakeEncoder(), crop, chosen).vectors)
    encode_exemplars(FakeEncoder(), counting, chosen, parts_dir=tmp_path / "parts", key="another cropper")
    assert len(cropped) == 20


def test_bad_exemplar_input_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingAssetError, match="annotation file .*no.json. does not exist"):
        read_exemplars(tmp_path / "no.json", tmp_path, NAMES)
    with pytest.raises(
        VocabularyError, match="1 of 2 classes are not among the 4 categories of annotation file .*: 'x'"
    ):
        read_exemplars(dataset, tmp_path, ["cup", "x"])
    with pytest.raises(ConfigError, match="shots must be at least 1"):
        sample_exemplars([], shots=0)
    with pytest.raises(ImageReadError, match="Cannot open image .*png: No such file.*Check the path"):
        encode_exemplars(FakeEncoder(), crop, read_exemplars(dataset, tmp_path / "x", NAMES))
    with pytest.raises(VocabularyError, match="no exemplars"):
        encode_exemplars(FakeEncoder(), crop, [])


def write_photo(path: Path, kind: str, orientation: int) -> None:
    """A photo of three channels with an orientation, or of one with 16 bits."""
    pixels = make_image(height=120, width=160, seed=3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "16 bit":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 250 + 40).save(path, "PNG", exif=exif)
    else:
        Image.fromarray(pixels).save(path, kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "16 bit"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exemplar_is_the_region_that_mmdetection_will_ask_about(tmp_path: Path, orientation: int, kind: str) -> None:
    """One photo, read as a few-shot exemplar and by MMDetection's loader: the same crop, so a cosine of 1."""
    path = tmp_path / "photo"
    write_photo(path, kind, orientation)
    cropper = RegionCropper(size=32, scale=AreaScale(), background=BlurBackground(3))
    box = (20.0, 30.0, 70.0, 95.0)
    hw = (120, 160) if orientation < 5 else (160, 120)
    taken: list[torch.Tensor] = []

    def crop_and_keep(photo: np.ndarray, boxes: torch.Tensor) -> torch.Tensor:
        taken.append(cropper.crop(photo, boxes))
        return taken[-1]

    entries = encode_exemplars(FakeEncoder(), crop_and_keep, [Exemplar(str(path), 0, box, photo_hw=hw)])
    loaded = LoadImageFromFile().transform({"img_path": str(path)})["img"]
    asked = cropper.crop(loaded[..., ::-1], [box])
    assert torch.equal(taken[0], asked)
    torch.testing.assert_close(entries.vectors @ FakeEncoder().encode_images(asked).T, torch.ones(1, 1))
    torch.testing.assert_close(cropper.crop(path, [box]), asked)  # and in Python, by its path
    with Image.open(path) as picture:
        assert (cropper.crop(picture, [box]).int() - asked.int()).abs().max() <= (1 if kind == "JPEG" else 0)


def test_an_exemplar_of_a_photo_of_another_size_is_refused(tmp_path: Path) -> None:
    """Boxes that were drawn before the photo was turned upright lie elsewhere."""
    write_photo(tmp_path / "photo", "JPEG", 6)
    wrong = Exemplar(str(tmp_path / "photo"), 0, (5.0, 5.0, 50.0, 50.0), photo_hw=(120, 160))
    with pytest.raises(ImageReadError, match="photo .*photo is 120x160 px but its annotation says 160x120"):
        encode_exemplars(FakeEncoder(), crop, [wrong])


def test_a_box_outside_the_photo_is_named_with_it(tmp_path: Path) -> None:
    write_photo(tmp_path / "photo", "PNG", 1)
    wrong = Exemplar(str(tmp_path / "photo"), 0, (500.0, 5.0, 550.0, 50.0), source="photo#77")
    with pytest.raises(InvalidBoxError, match=r"photo .*photo, exemplars \['photo#77'\]: .*entirely outside"):
        encode_exemplars(FakeEncoder(), RegionCropper(size=16).crop, [wrong])


def test_odd_annotations_are_left_out(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = json.loads(dataset.read_text())
    before = sample_exemplars(read_exemplars(dataset, dataset.parent, NAMES), shots=9)
    for image in content["images"]:
        image |= {"height": 96, "width": 128}
    odd: list[dict] = [
        {"bbox": None},
        {},
        {"bbox": []},
        {"bbox": [1, 2, 3]},
        {"bbox": ["1", "2", "30", "40"]},
        {"bbox": [1, 2, float("nan"), 40]},
        {"bbox": [1, 2, 0, 40]},
        {"bbox": [1, 2, -30, 40]},
        {"bbox": [128, 2, 30, 40]},
        {"bbox": [1, -50, 30, 40]},
        {"bbox": [1, 2, 30, 40], "ignore": 1},
        {"bbox": [1, 2, 30, 40], "image_id": 999},
        {"bbox": [1, 2, 30, 40], "category_id": 999},
    ]
    content["annotations"] += [{"id": 500 + i, "image_id": 10, "category_id": 103, **a} for i, a in enumerate(odd)]
    dataset.write_text(json.dumps(content))
    after = sample_exemplars(read_exemplars(dataset, dataset.parent, NAMES), shots=9)
    assert [(e.image, e.source, e.box_xyxy) for e in after] == [(e.image, e.source, e.box_xyxy) for e in before]
    assert (
        "left out 8 without a box that has an area, 2 crowds or ignored regions, 2 outside their photo" in caplog.text
    )
    assert "of unknown photos" in caplog.text
    assert "of unknown categories" in caplog.text
    assert {e.photo_hw for e in before} == {None}
    assert {e.photo_hw for e in after} == {(96, 128)}


def test_synonyms_and_descriptions_become_entries(dataset: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    recipe = TextMemory(cache_dir=tmp_path, annotations=dataset, synonyms="both")
    memory = recipe.prepare(encoder, NAMES)
    assert list(memory.entries.sources[:3]) == ["name: cup", "synonym: other cup", "description: what cup is"]
    assert len(memory.entries) == 12
    for text in ("a photo of a other red star", "what red star is"):
        assert memory.search(encoder.encode_texts([text]), 1).category_ids.item() == 1
    some = recipe.prepare(encoder, ["bow (weapon)", "cup"])  # some of the file's names, in another order and spelling
    assert list(some.entries.sources) == [
        "name: bow (weapon)",
        "synonym: other bow (weapon)",
        "description: what bow_(weapon) is",
        "name: cup",
        "synonym: other cup",
        "description: what cup is",
    ]
    assert len(TextMemory(cache_dir=tmp_path, annotations=dataset, synonyms=True).prepare(encoder, NAMES).entries) == 8
    described = TextMemory(cache_dir=tmp_path, annotations=dataset, synonyms="descriptions")
    assert len(described.prepare(encoder, NAMES).entries) == 8
    with pytest.raises(VocabularyError, match="1 of 1 classes are not among the 4 categories of annotations .*'zebra'"):
        recipe.prepare(encoder, ["zebra"])
    with pytest.raises(MissingAssetError, match=r"no\.json' \(for synonyms\) does not exist"):
        TextMemory(annotations=tmp_path / "no.json", synonyms=True).prepare(encoder, NAMES)


@pytest.mark.parametrize("synonyms", ["cup", [1], {"a": 1}])
def test_odd_synonyms_are_refused(dataset: Path, synonyms: object) -> None:
    content = json.loads(dataset.read_text())
    content["categories"][1]["synonyms"] = synonyms
    dataset.write_text(json.dumps(content))
    with pytest.raises(VocabularyError, match="the synonyms of 'red star' are .*, expected a list of names. Mend them"):
        TextMemory(annotations=dataset, synonyms=True).prepare(FakeEncoder(), NAMES)


def test_changed_vocabulary_encodes_new_names_only(dataset: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    recipe = TextMemory(templates="clip7", cache_dir=tmp_path)
    images = encode_exemplars(encoder, crop, sample_exemplars(read_exemplars(dataset, dataset.parent, NAMES), shots=2))
    memory = recipe.prepare(encoder, NAMES).with_entries(images, "two shots")
    asked: list[str] = []
    encoder.encode_texts = lambda texts: asked.extend(texts) or FakeEncoder().encode_texts(texts)  # type: ignore[method-assign]
    wanted = ["new", "bow_(weapon)", "cup", "cup"]
    changed = recipe.update(memory, encoder, wanted)
    assert len(asked) == 7 * 2  # "new" and the second "cup"
    assert changed.category_names == tuple(wanted)
    fresh = recipe.prepare(FakeEncoder(), wanted)
    texts = changed.entries.of_kind(EntryKind.TEXT)
    torch.testing.assert_close(texts.vectors, fresh.entries.vectors)
    counts = changed.entries.of_kind(EntryKind.IMAGE).counts(4)
    assert counts.tolist() == [0, 2, 2, 0]
    with pytest.raises(VocabularyError, match="none of the old categories is kept"):
        recipe.update(memory, FakeEncoder(), ["x", "y"])


def test_exemplars_of_a_vocabulary_in_another_order_or_part(dataset: Path) -> None:
    """Each exemplar belongs to the category of its name, wherever that stands in the file."""
    name_of = {a["id"]: NAMES[a["category_id"] - 100] for a in json.loads(dataset.read_text())["annotations"]}
    for names in (NAMES[::-1], ["red_star", "cup"]):
        found = read_exemplars(dataset, dataset.parent, names)
        assert {e.category_id for e in found} == ({1, 2, 3} if len(names) == 4 else {0, 1})
        for exemplar in found:
            own = name_of[int(exemplar.source.split("#")[1])]
            assert names[exemplar.category_id].replace("_", " ") == own.replace("_", " ")


def test_exemplars_come_from_anywhere(tmp_path: Path) -> None:
    """Whole photos and regions, as paths, arrays and PIL images, from a generator."""
    photo = make_image(40, 60, seed=1)
    Image.fromarray(photo).save(tmp_path / "a.png")
    images = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        photo,
        Image.fromarray(photo),
        torch.from_numpy(photo).permute(2, 0, 1),
    ]
    cropper = RegionCropper(size=32)
    given = [Exemplar(image, i) for i, image in enumerate(images)] + [Exemplar(photo, 5, (3.0, 4.0, 30.0, 25.0))]
    entries = encode_exemplars(FakeEncoder(), cropper.crop, (exemplar for exemplar in given))
    whole = FakeEncoder().encode_images(cropper.crop(photo, [[0.0, 0.0, 60.0, 40.0]]))
    part = FakeEncoder().encode_images(cropper.crop(photo, [[3.0, 4.0, 30.0, 25.0]]))
    assert entries.category_ids.tolist() == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(entries.vectors, torch.cat([whole] * 5 + [part]))
    assert list(entries.sources) == ["a.png", "a.png", "image", "image", "image", "image [3, 4, 30, 25]"]


def test_parts_of_another_photo_under_the_same_name_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exemplars, "IMAGES_PER_PART", 1)
    for seed in (1, 2):
        Image.fromarray(make_image(40, 60 + seed, seed=seed)).save(tmp_path / "a.png")
        for image in (tmp_path / "a.png", make_image(40, 60, seed=seed)):
            entries = encode_exemplars(
                FakeEncoder(), RegionCropper(size=32).crop, [Exemplar(image, 0)], parts_dir=tmp_path / "parts"
            )
            alone = encode_exemplars(FakeEncoder(), RegionCropper(size=32).crop, [Exemplar(image, 0)])
            assert torch.equal(entries.vectors, alone.vectors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param([], "has no list `images`", id="list"),
        pytest.param({"images": [], "categories": []}, "has no list `annotations`", id="no-annotations"),
        pytest.param(
            {"images": [], "annotations": [3], "categories": []},
            r"annotations\[0\] = 3, expected a record",
            id="record",
        ),
    ],
)
def test_what_is_no_annotation_file_is_refused(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationFileError, match=message):
        read_exemplars(tmp_path / "a.json", tmp_path, ["cup"])


def test_odd_ids_are_left_out_too(dataset: Path) -> None:
    content = json.loads(dataset.read_text())
    before = read_exemplars(dataset, dataset.parent, NAMES)
    content["images"].append({"id": [1], "file_name": "x"})
    for image_id, category_id in (([1], 100), (None, 100), (10, [100]), (10, "100"), (10, None)):
        content["annotations"].append(
            {"id": None, "image_id": image_id, "category_id": category_id, "bbox": [1, 2, 9, 9]}
        )
    dataset.write_text(json.dumps(content))
    assert read_exemplars(dataset, dataset.parent, NAMES) == before


def test_shots_that_are_lacking_are_told(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    sample_exemplars(read_exemplars(dataset, dataset.parent, NAMES), shots=5)
    assert "2 of 3 categories have fewer than 5 exemplars" in caplog.text


class PhotoEncoder(FakeEncoder):
    """Encodes boxes of whole photos: the mean colour of the box and where it is."""

    def encode_regions(self, image, boxes_xyxy):
        rows = [
            torch.tensor([*image[int(y1) : int(y2), int(x1) : int(x2)].mean(axis=(0, 1)), x1, y1, x2, y2])
            for x1, y1, x2, y2 in torch.as_tensor(boxes_xyxy).tolist()
        ]
        return torch.nn.functional.normalize(torch.stack(rows).float(), dim=1)


def test_an_encoder_of_boxes_sees_exemplars_as_it_will_see_regions() -> None:
    encoder, exemplars = PhotoEncoder(), [
        Exemplar(make_image(40, 50, 1), 0, (3, 4, 20, 30)),
        Exemplar(make_image(40, 50, 2), 1),
    ]  # fmt: skip

    def no_crops(image, boxes):
        raise AssertionError("crops are not needed")

    entries = encode_exemplars(encoder, no_crops, exemplars)
    expected = [encoder.encode_regions(exemplars[0].image, [exemplars[0].box_xyxy])]
    expected.append(encoder.encode_regions(exemplars[1].image, [[0, 0, 50, 40]]))
    torch.testing.assert_close(entries.vectors, torch.cat(expected))
