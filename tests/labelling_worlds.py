"""A labeller of small fakes, and what it labels."""

import torch
from PIL import Image

from rar_mmdet import RegionRecognizer
from rar_mmdet.detectors import Detected
from rar_mmdet.labelling import Labeller
from rar_mmdet.memory import TextMemory
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import FakeEncoder, FakeRanker, make_image

WORDS = ["red & <blue>", 'say "cat"', "dog > poodle", "łoś"]
SIZES = {"a.png": (60, 40), "b/ü c.jpg": (50, 50), "a.jpg": (30, 70)}  # width, height; two of one stem


class ThreeBoxes:
    """Two boxes inside and one over the rim; remembers the photos it was asked about."""

    def __init__(self):
        self.calls = []

    def boxes(self, height, width):
        return torch.tensor([[2.0, 3, 20, 25], [5.25, 6.5, 28, 30], [10, 10, width + 2, height + 3]])

    def detect(self, images, paths=None):
        self.calls += paths
        return [Detected(self.boxes(*image.shape[:2]), torch.ones(3)) for image in images]


def labeller(boxes=None, min_score=0.0, words=WORDS):
    recognizer = RegionRecognizer(
        cropper=RegionCropper(),
        encoder=FakeEncoder(),
        memory=TextMemory(cache_dir=None),
        category_names=["anything"],
        ranker=FakeRanker(),
        num_candidates=3,
    )
    return Labeller(recognizer, words, boxes or ThreeBoxes(), min_score)


def write_photos(folder):
    """The photos of `SIZES`."""
    for seed, (name, (width, height)) in enumerate(SIZES.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(height, width, seed=seed)).save(folder / name)
    return folder
