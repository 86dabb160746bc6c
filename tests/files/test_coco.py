"""Records of annotation files as many tools write them."""

import pytest

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.files.coco import box_of, is_object, photo_path, photo_size_hw


@pytest.mark.parametrize("bbox", [[1, 2.5, 30, 40], (1, 2.5, 30, 40)])
def test_box_of(bbox):
    assert box_of({"bbox": bbox}) == (1, 2.5, 31, 42.5)


@pytest.mark.parametrize(
    "bbox",
    [None, [], [1, 2, 3], [1, 2, 3, 4, 5], ["1", "2", "3", "4"], [1, 2, None, 4], [1, 2, float("inf"), 4], "1234", 7],
    ids=str,
)
def test_boxes_that_are_not_four_numbers(bbox):
    assert box_of({"bbox": bbox}) is None
    assert box_of({}) is None


@pytest.mark.parametrize("bbox", [[1, 2, 0, 4], [1, 2, 3, 0], [1, 2, -3, 4], [1, 2, True, 4]], ids=str)
def test_boxes_without_an_area(bbox):
    assert box_of({"bbox": bbox}) is None


def test_crowds_and_ignored_regions_are_no_objects():
    assert is_object({})
    assert is_object({"iscrowd": 0, "ignore": None})
    assert not is_object({"iscrowd": 1})
    assert not is_object({"ignore": True})


@pytest.mark.parametrize("image", [{}, {"height": 5}, {"height": "5", "width": 4}, {"height": 0, "width": 4}])
def test_size_may_be_unknown(image):
    assert photo_size_hw(image) is None
    assert photo_size_hw({"height": 5, "width": 4.0}) == (5, 4)


def test_photo_path(tmp_path):
    lvis = {"id": 3, "coco_url": "http://images.cocodataset.org/val2017/000003.jpg?x=1"}
    assert photo_path(lvis, tmp_path) == tmp_path / "val2017" / "000003.jpg"
    assert photo_path({**lvis, "file_name": None}, tmp_path) == tmp_path / "val2017" / "000003.jpg"
    assert photo_path({**lvis, "file_name": "a/b.png"}, str(tmp_path)) == tmp_path / "a" / "b.png"
    with pytest.raises(AnnotationFileError, match="image 3 has no file_name and no coco_url"):
        photo_path({"id": 3, "file_name": ""}, tmp_path)
