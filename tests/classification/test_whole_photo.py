"""A photo is one box: any shortlister, and a ranker on it, through the recogniser that serves boxes."""

import pytest
import torch

from rar_mmdet import RegionRecognizer
from rar_mmdet.errors import MemoryMismatchError
from rar_mmdet.memory.classifiers import NearestImages, ReadyMemory, TipAdapter, gda_classifier, text_classifier
from rar_mmdet.memory.few_shot import fit_gda
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import FakeEncoder, FakeRanker, make_image

NAMES = ("red fox", "grey, old wolf", "dog")


def whole(photo):
    return [[0, 0, photo.shape[1], photo.shape[0]]]


@pytest.fixture
def world():
    encoder, cropper = FakeEncoder(), RegionCropper(window="cover")
    photos = [make_image(48 + 4 * i, 90 - 5 * i, seed=i) for i in range(9)]
    sized = cropper.with_size(encoder.image_size)
    vectors = encoder.encode_images(torch.cat([sized.crop(photo, whole(photo)) for photo in photos]))
    labels, text = torch.arange(9) % 3, encoder.encode_texts(NAMES).T
    shortlisters = {
        "text": text_classifier(text),
        "knn": NearestImages(vectors, labels, 3),
        "tip": TipAdapter(text, vectors, labels),
        "gda": gda_classifier(text, fit_gda(vectors, labels, 3), 1.0),
    }
    return encoder, cropper, photos, vectors, labels, shortlisters


@pytest.mark.parametrize("name", ["text", "knn", "tip", "gda"])
def test_photos_are_named_as_their_vectors_are(world, name):
    encoder, cropper, photos, vectors, labels, shortlisters = world
    memory = ReadyMemory(shortlisters[name], encoder.fingerprint, NAMES)
    recognizer = RegionRecognizer(cropper=cropper, encoder=encoder, memory=memory, category_names=NAMES)
    found = [recognizer(photo, whole(photo)) for photo in photos]
    assert all(len(one) == 1 for one in found)
    best = torch.cat([one.best_ids for one in found])
    assert torch.equal(best, shortlisters[name].search(vectors, 1).category_ids[:, 0])
    if name == "knn":
        assert torch.equal(best, labels)  # every photo is its own nearest exemplar
        assert found[1].best_names == ["grey, old wolf"]


def test_a_ranker_sees_the_whole_photo(world):
    encoder, cropper, photos, _, _, shortlisters = world
    ranker, seen = FakeRanker(crop_size=24), []
    rank = ranker.rank
    ranker.rank = lambda crops, *rest: (seen.append(crops), rank(crops, *rest))[1]
    recognizer = RegionRecognizer(
        cropper=cropper,
        encoder=encoder,
        memory=ReadyMemory(shortlisters["gda"], encoder.fingerprint, NAMES),
        category_names=NAMES,
        ranker=ranker,
        ranker_cropper=RegionCropper(window="pad"),
        num_candidates=3,
    )
    recognition = recognizer(photos[0], whole(photos[0]))
    assert recognition.ranking.has_opinion.all()
    expected = RegionCropper(size=24, window="pad").crop(photos[0], whole(photos[0]))
    assert torch.equal(seen[0], expected)


def test_memories_of_other_encoders_and_names_are_refused(world):
    encoder, cropper, photos, _, _, shortlisters = world
    for fingerprint, names, message in (
        ("other", NAMES, "the vectors are of encoder other, the recogniser has fake-16-0"),
        (encoder.fingerprint, NAMES[::-1], "Give the recogniser the memory's names"),
    ):
        memory = ReadyMemory(shortlisters["text"], fingerprint, names)
        recognizer = RegionRecognizer(cropper=cropper, encoder=encoder, memory=memory, category_names=NAMES)
        with pytest.raises(MemoryMismatchError, match=message):
            recognizer(photos[0], whole(photos[0]))
