import pytest
import torch

from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.testing import make_boxes


def frame(scale=(1.5, 0.75), flip=None, hw=(60, 80)):
    meta = {"scale_factor": scale, "flip": flip is not None, "flip_direction": flip, "ori_shape": hw}
    return ImageFrame.from_metainfo(meta)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.5, 2.5), (1.6664, 1.6667), (0.31, 3.3)])
@pytest.mark.parametrize("flip", [None, "horizontal", "vertical", "diagonal"])
def test_input_frame_and_back(scale, flip):
    boxes = make_boxes(50)
    assert (frame(scale, flip).to_original(frame(scale, flip).to_input(boxes)) - boxes).abs().max() < 1e-3


def test_width_and_height_scale_apart():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    assert frame((2.0, 0.5)).to_original(boxes).tolist() == [[5.0, 40.0, 15.0, 80.0]]


def test_horizontal_flip_mirrors_at_the_original_width():
    found_in_flipped_input = torch.tensor([[0.0, 0.0, 20.0, 10.0]])  # at the left of the mirrored, doubled photo
    assert frame((2.0, 2.0), "horizontal").to_original(found_in_flipped_input).tolist() == [[70.0, 0.0, 80.0, 5.0]]


def test_absent_metainfo_means_identity():
    boxes = make_boxes(3)
    assert torch.equal(ImageFrame.from_metainfo({"ori_shape": (60, 80)}).to_original(boxes), boxes)


def test_no_boxes():
    assert frame(flip="horizontal").to_original(torch.zeros(0, 4)).shape == (0, 4)
