import json

import numpy as np
import pytest
import torch
from mmdet.datasets import LVISV1Dataset
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.mask import PolygonMasks
from mmengine.dataset import pseudo_collate
from mmengine.fileio import dump
from mmengine.logging import MMLogger

from rar_mmdet.errors import AnnotationFileError, ImageReadError, InvalidBoxError, VocabularyError
from rar_mmdet.models.testing import fake_recognizer, write_lvis_world
from rar_mmdet.testing import make_image

PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "rar_mmdet.ProposalsFromAnnotations"},
    {"type": "rar_mmdet.PackRecognitionInputs"},
]


def build(kind, root, **changes):
    config = {
        "type": f"rar_mmdet.{kind}",
        "data_root": str(root),
        "ann_file": "annotations/lvis_demo_test.json",
        "data_prefix": {"img": ""},
        "test_mode": True,
        "pipeline": PIPELINE,
    }
    return DATASETS.build(config | changes)


@pytest.fixture
def world(tmp_path):
    return write_lvis_world(tmp_path)


KINDS = ["LVISVocabularyDataset", "V3DetVocabularyDataset", "CocoVocabularyDataset"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_come_from_the_annotation_file(kind, world, tmp_path):
    dataset = build(kind, tmp_path)
    assert dataset.metainfo["classes"] == tuple(f"thing_{i + 1}" for i in range(12))
    assert list(dataset.cat_ids) == list(range(1, 13))
    assert len(dataset) == 5
    sample = dataset[0]["data_samples"]
    assert sample.proposals.bboxes.shape == (3, 4)
    assert len(dataset[1]["data_samples"].proposals.bboxes) == 0


def test_data_equal_mmdetections_own(world, tmp_path):
    ours = build("LVISVocabularyDataset", tmp_path)
    theirs = LVISV1Dataset(
        data_root=str(tmp_path),
        ann_file="annotations/lvis_demo_test.json",
        data_prefix={"img": ""},
        test_mode=True,
        pipeline=[],
    )
    assert [ours.get_data_info(i) for i in range(5)] == [theirs.get_data_info(i) for i in range(5)]


def test_lvis_images_come_from_both_folders(world, tmp_path):
    content = json.loads(world.read_text())
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/000000.png"
    content["images"][1]["coco_url"] = "https://mirror.example.com/a/coco/train2017/000001.png?size=full"
    del content["images"][2]["coco_url"]
    content["images"][2]["file_name"] = "own/000002.png"
    world.write_text(json.dumps(content))
    dataset = build("LVISVocabularyDataset", tmp_path)
    folders = [dataset.get_data_info(i)["img_path"].split("/")[-2] for i in range(5)]
    assert folders == ["train2017", "train2017", "own", "val2017", "val2017"]


def test_repeated_names_keep_their_own_label(world, tmp_path):
    content = json.loads(world.read_text())
    content["categories"][3]["name"] = "thing_1"
    world.write_text(json.dumps(content))
    dataset = build("LVISVocabularyDataset", tmp_path)
    labels = {i["bbox_label"] for n in range(5) for i in dataset.get_data_info(n)["instances"]}
    assert {0, 3} <= labels


def test_chosen_classes_win(world, tmp_path):
    dataset = build("CocoVocabularyDataset", tmp_path, metainfo={"classes": ("thing_2", "thing_5")})
    assert list(dataset.cat_ids) == [2, 5]


def test_no_data_is_needed_for_the_metainfo_alone(tmp_path):
    dataset = build("LVISVocabularyDataset", tmp_path / "absent", lazy_init=True)
    assert "classes" in dataset.metainfo


def test_indices_take_a_subset(world, tmp_path):
    assert len(build("LVISVocabularyDataset", tmp_path, indices=2)) == 2


def test_crowd_boxes_are_no_proposals(world, tmp_path):
    content = json.loads(world.read_text())
    content["annotations"][0]["iscrowd"] = 1
    world.write_text(json.dumps(content))
    sample = build("CocoVocabularyDataset", tmp_path)[0]["data_samples"]
    assert len(sample.proposals.bboxes) == 2
    assert len(sample.gt_instances) == 2
    assert len(sample.ignored_instances) == 1


@pytest.mark.parametrize("poly2mask", [True, False])
def test_recognition_of_masks_from_file_to_scores(world, tmp_path, poly2mask):
    content = json.loads(world.read_text())
    content["annotations"][0]["iscrowd"] = 1
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x, y + h]]
    world.write_text(json.dumps(content))
    cropper = {"type": "RegionCropper", "size": 32, "background": {"type": "BlurOutsideMask", "sigma": 3}}
    smaller = {"type": "RegionCropper", "size": 24, "background": {"type": "BlurOutsideMask", "sigma": 2.25}}
    pipeline = [
        PIPELINE[0],
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True, "poly2mask": poly2mask},
        {"type": "rar_mmdet.ProposalsFromAnnotations", "with_masks": True},
        {"type": "rar_mmdet.CropRegions", "cropper": cropper, "ranker_cropper": smaller},
        PIPELINE[-1],
    ]
    dataset = build("CocoVocabularyDataset", tmp_path, pipeline=pipeline)
    names = dataset.metainfo["classes"]
    model = MODELS.build(
        {"type": "rar_mmdet.ProposalRecognizer", "recognizer": fake_recognizer(names, cropper=cropper)}
    ).eval()
    (sample,) = model.test_step(pseudo_collate([dataset[0]]))
    triangles = [[np.array(a["segmentation"][0])] for a in content["annotations"][1:3]]
    masks, boxes = PolygonMasks(triangles, 60, 80).to_ndarray(), dataset[0]["data_samples"].proposals.bboxes
    image, recognizer = make_image(60, 80, seed=0), model.branch.recognizer
    expected = recognizer(image, boxes, masks=masks)
    assert torch.equal(sample.pred_instances.scores, expected.scores)
    assert torch.equal(sample.pred_instances.labels, expected.category_ids)
    assert not torch.equal(expected.scores, recognizer(image, boxes).scores)


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, "cannot be read: .*No such file"), (b"not an image", "is not an image OpenCV"), (b"", "it has 0 bytes")],
    ids=["missing", "garbage", "empty"],
)
def test_unreadable_image_is_named(world, tmp_path, content, match):
    path = tmp_path / "val2017" / "000002.png"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageReadError, match=rf"image 3 \(.*000002\.png\) .*{match}"):
        build("LVISVocabularyDataset", tmp_path)[2]


def test_proposal_file(world, tmp_path):
    boxes = {
        f"val2017/{i:06d}.png": {"bboxes": np.full((i, 4), [1, 1, 9, 9.0]), "scores": np.ones(i)} for i in range(5)
    }
    dump(boxes, str(tmp_path / "proposals.pkl"))
    pipeline = [PIPELINE[0], {"type": "LoadProposals"}, PIPELINE[-1]]
    dataset = build("LVISVocabularyDataset", tmp_path, proposal_file="proposals.pkl", pipeline=pipeline)
    assert [len(dataset[i]["data_samples"].proposals.bboxes) for i in range(5)] == [0, 1, 2, 3, 4]


def test_proposals_are_resized_with_their_image(world, tmp_path):
    """Fast R-CNN's pipeline: LoadProposals and ProposalBroadcaster, also for an image without proposals."""
    boxes = {
        f"val2017/{i:06d}.png": {"bboxes": np.full((i, 4), [1, 2, 9, 8.0]), "scores": np.ones(i)} for i in range(5)
    }
    dump(boxes, str(tmp_path / "proposals.pkl"))
    pipeline = [
        PIPELINE[0],
        {"type": "rar_mmdet.KeepOriginalImage"},
        {"type": "LoadProposals"},
        {"type": "ProposalBroadcaster", "transforms": [{"type": "Resize", "scale": (160, 60), "keep_ratio": False}]},
        PIPELINE[-1],
    ]
    dataset = build("LVISVocabularyDataset", tmp_path, proposal_file="proposals.pkl", pipeline=pipeline)
    assert dataset[0]["data_samples"].proposals.bboxes.shape == (0, 4)
    sample = dataset[3]["data_samples"]  # 80x60 px
    assert sample.proposals.bboxes.tolist() == [[2.0, 2.0, 18.0, 8.0]] * 3
    assert sample.ori_img.shape == (60, 80, 3)


def labels_by_name(dataset):
    """Names that the labels of all annotations stand for, in the order of the file."""
    classes = dataset.metainfo["classes"]
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    return [classes[instance["bbox_label"]] for info in infos for instance in info["instances"]]


class TestLabels:
    """Whatever the order of the classes and of the file, a label is the name it stands for."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("order", ["reversed", "shuffled", "some"])
    def test_classes_in_any_order(self, kind, order, world, tmp_path):
        names = [f"thing_{i + 1}" for i in range(12)]
        chosen = {"reversed": names[::-1], "shuffled": names[5:] + names[:5], "some": ["thing_7", "thing_2"]}[order]
        every = labels_by_name(build(kind, tmp_path))
        dataset = build(kind, tmp_path, metainfo={"classes": chosen})
        assert labels_by_name(dataset) == [name for name in every if name in chosen]
        assert [f"thing_{i}" for i in dataset.cat_ids] == chosen
        assert [dataset.cat2label[i] for i in dataset.cat_ids] == list(range(len(chosen)))

    @pytest.mark.parametrize("kind", KINDS)
    def test_categories_in_any_order(self, kind, world, tmp_path):
        every = labels_by_name(build(kind, tmp_path))
        content = json.loads(world.read_text())
        content["categories"] = content["categories"][4:] + content["categories"][:4]
        world.write_text(json.dumps(content))
        dataset = build(kind, tmp_path)
        assert dataset.metainfo["classes"][0] == "thing_5"
        assert labels_by_name(dataset) == every

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("classes", "match"),
        [
            (["thing_1", "thingy_2"], "'thingy_2'.*did you mean 'thing_2'"),
            (["thing_1", "thing_1"], "'thing_1'.*2 times"),
        ],
        ids=["misspelt", "repeated"],
    )
    def test_classes_that_are_none(self, kind, classes, match, world, tmp_path):
        with pytest.raises(VocabularyError, match=match):
            build(kind, tmp_path, metainfo={"classes": classes})

    def test_a_file_of_classes(self, world, tmp_path):
        (tmp_path / "names.txt").write_text("thing_3\nthing_1\n")
        dataset = build("CocoVocabularyDataset", tmp_path, metainfo={"classes": str(tmp_path / "names.txt")})
        assert dataset.metainfo["classes"] == ("thing_3", "thing_1")
        assert list(dataset.cat_ids) == [3, 1]


class TestOddRecords:
    @pytest.fixture
    def content(self, world):
        return json.loads(world.read_text())

    @pytest.fixture
    def boxes(self, world, tmp_path):
        return [i["bbox"] for i in build("CocoVocabularyDataset", tmp_path).get_data_info(0)["instances"]]

    def test_an_area_that_is_missing_is_the_boxes(self, content, world, tmp_path, boxes):
        content["annotations"][0]["area"] = None
        del content["annotations"][1]["area"]
        world.write_text(json.dumps(content))
        dataset = build("CocoVocabularyDataset", tmp_path)
        assert [i["bbox"] for i in dataset.get_data_info(0)["instances"]] == boxes

    def test_images_without_their_size(self, content, world, tmp_path, boxes):
        for image in content["images"]:
            del image["height"], image["width"]
        world.write_text(json.dumps(content))
        info = build("CocoVocabularyDataset", tmp_path).get_data_info(0)
        assert [i["bbox"] for i in info["instances"]] == boxes
        assert "height" not in info

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"image_id": "1"}, r"annotations: record 0 \(id 1, image_id '1'\) has image_id '1', expected an id .*: 1"),
            ({"category_id": "1"}, "has category_id '1', expected an id .*: 1"),
            ({"bbox": [1, 2, 3]}, r"has bbox \[1, 2, 3\], expected four finite numbers"),
            ({"bbox": None}, "has bbox None, expected four finite numbers"),
            ({"area": "big"}, "has area 'big', expected a finite number"),
            ({"iscrowd": "no"}, "has iscrowd 'no', expected 0 or 1"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_records_that_are_refused(self, changes, match, content, world, tmp_path):
        content["annotations"][0] |= changes
        world.write_text(json.dumps(content))
        with pytest.raises(AnnotationFileError, match=match):
            build("CocoVocabularyDataset", tmp_path)

    @pytest.mark.parametrize("key", ["image_id", "category_id", "bbox"])
    def test_fields_that_are_missing(self, key, content, world, tmp_path):
        del content["annotations"][2][key]
        world.write_text(json.dumps(content))
        with pytest.raises(AnnotationFileError, match=rf"annotations: record 2 .*has (no {key}|bbox None)"):
            build("CocoVocabularyDataset", tmp_path)

    def test_an_image_without_its_file(self, content, world, tmp_path):
        del content["images"][2]["file_name"]
        world.write_text(json.dumps(content))
        with pytest.raises(AnnotationFileError, match="image 3 has file_name None, expected the path"):
            build("CocoVocabularyDataset", tmp_path)

    def test_repeated_ids(self, content, world, tmp_path):
        content["annotations"][1]["id"] = 1
        world.write_text(json.dumps(content))
        with pytest.raises(AssertionError, match="are not unique!"):
            build("CocoVocabularyDataset", tmp_path)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda w: w.update(annotations=[]), "has no annotations: there are no annotated boxes"),
            (
                lambda w: [a.update(bbox=[v / 90 for v in a["bbox"]]) for a in w["annotations"]],
                "all 12 boxes lie in 0..1",
            ),
            (lambda w: w["annotations"][0].update(image_id=77), "1 of 12 have no image in the file"),
        ],
        ids=["no-annotations", "fractions", "unknown-image"],
    )
    def test_what_is_said_once(self, change, match, content, world, tmp_path, caplog):
        change(content)
        world.write_text(json.dumps(content))
        with caplog.at_level("WARNING"):
            MMLogger.get_instance("dataset_notes").addHandler(caplog.handler)
            build("CocoVocabularyDataset", tmp_path)
        assert len([r for r in caplog.records if match in r.getMessage()]) == 1


def test_a_proposal_file_of_other_images(world, tmp_path):
    dump({"val2017/other.png": {"bboxes": np.zeros((0, 4))}}, str(tmp_path / "p.pkl"))
    with pytest.raises(InvalidBoxError, match="has no image 'val2017/000000.png' .*such as 'val2017/other.png'"):
        build("LVISVocabularyDataset", tmp_path, proposal_file="p.pkl")


def test_a_list_of_images_is_the_part_that_is_tested(world, tmp_path):
    whole = build("LVISVocabularyDataset", tmp_path)
    ids = [whole.get_data_info(i)["img_id"] for i in (0, 3)]
    (tmp_path / "minival.txt").write_text("\n".join(map(str, ids)))
    part = build("LVISVocabularyDataset", tmp_path, image_ids=str(tmp_path / "minival.txt"))
    assert [part.get_data_info(i)["img_id"] for i in range(len(part))] == ids
    assert part.metainfo["classes"] == whole.metainfo["classes"]
    (tmp_path / "minival.txt").write_text("987654")
    with pytest.raises(AnnotationFileError, match="1 of the 1 images of the list are not in annotation file"):
        build("LVISVocabularyDataset", tmp_path, image_ids=str(tmp_path / "minival.txt"))
