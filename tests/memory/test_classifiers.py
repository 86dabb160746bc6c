"""Shortlists of every training-free classifier, against slow definitions."""

import pytest
import torch
from torch.nn.functional import normalize

from rar_mmdet.errors import FewShotError
from rar_mmdet.memory import Shortlister, classifiers
from rar_mmdet.memory.classifiers import (
    LinearClassifier,
    NearestImages,
    TipAdapter,
    class_mean_classifier,
    gda_classifier,
    image_text_classifier,
    text_classifier,
)
from rar_mmdet.memory.few_shot import fit_gda, gda_logits, nearest_labels, tip_logits

CLASSES, CHANNELS = 6, 12


@pytest.fixture
def world():
    generator = torch.Generator().manual_seed(0)

    def unit(rows):
        return normalize(torch.randn(rows, CHANNELS, generator=generator), dim=1)

    labels = torch.tensor([0, 1, 1, 2, 2, 2, 3, 4, 5, 5, 0, 4, 3])[torch.randperm(13, generator=generator)]
    return unit(40), unit(13), labels, unit(CLASSES).T.contiguous()


def rows(queries, exemplars, labels, text):
    gda = fit_gda(exemplars, labels, CLASSES)
    nearest = torch.full((len(queries), CLASSES), -torch.inf)
    for query in range(len(queries)):
        for exemplar, label in zip(exemplars, labels.tolist(), strict=True):
            nearest[query, label] = max(nearest[query, label], 100 * queries[query] @ exemplar)
    means = torch.stack([normalize(exemplars[labels == c].mean(dim=0), dim=0) for c in range(CLASSES)])
    return {
        "text": (text_classifier(text), 100 * queries @ text),
        "knn": (NearestImages(exemplars, labels, CLASSES), nearest),
        "mean": (class_mean_classifier(exemplars, labels, CLASSES), 100 * queries @ means.T),
        "mix": (image_text_classifier(text, exemplars, labels, 0.3), 100 * queries @ (0.3 * means.T + 0.7 * text)),
        "tip": (TipAdapter(text, exemplars, labels), tip_logits(queries, exemplars, labels, text, 1, 5.5)),
        "gda": (gda_classifier(text, gda, 0.2), gda_logits(queries, text, gda, 0.2)),
    }


@pytest.mark.parametrize("depth", [1, 3, 6, 20])
@pytest.mark.parametrize("name", ["text", "knn", "mean", "mix", "tip", "gda"])
def test_shortlists_are_the_sorted_softmax(world, monkeypatch, name, depth):
    monkeypatch.setattr(classifiers, "BLOCK_ROWS", 7)
    classifier, logits = rows(*world)[name]
    retriever: Shortlister = classifier
    shortlist = retriever.search(world[0], depth)
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :depth]
    assert torch.equal(shortlist.category_ids, order)
    torch.testing.assert_close(shortlist.probs, logits.softmax(dim=1).gather(1, order), rtol=1e-4, atol=1e-6)
    none = retriever.search(world[0][:0], depth)
    assert none.category_ids.shape == (0, min(depth, CLASSES))


def test_the_first_of_the_nearest_images_is_the_released_one(world):
    queries, exemplars, labels, _ = world
    first = NearestImages(exemplars, labels, CLASSES).search(queries, 1).category_ids
    assert torch.equal(first, nearest_labels(queries, exemplars, labels, 1))


def test_a_class_without_exemplars_is_last_or_has_its_text(world):
    queries, exemplars, labels, text = world
    kept = labels != 2
    for classifier in (
        NearestImages(exemplars[kept], labels[kept], CLASSES),
        class_mean_classifier(exemplars[kept], labels[kept], CLASSES),
    ):
        shortlist = classifier.search(queries, CLASSES)
        assert (shortlist.category_ids[:, -1] == 2).all()
        assert (shortlist.probs[:, -1] == 0).all()
    mixed = image_text_classifier(text, exemplars[kept], labels[kept])
    torch.testing.assert_close(mixed.weight[:, 2], 100 * text[:, 2])


def test_ends_of_the_mix_are_text_and_images(world):
    queries, exemplars, labels, text = world
    pairs = (
        (image_text_classifier(text, exemplars, labels, 0.0), text_classifier(text)),
        (image_text_classifier(text, exemplars, labels, 1.0), class_mean_classifier(exemplars, labels, CLASSES)),
        (TipAdapter(text, exemplars, labels, alpha=0), text_classifier(text)),
        (gda_classifier(text, fit_gda(exemplars, labels, CLASSES), 0), text_classifier(text)),
    )
    for one, other in pairs:
        a, b = one.search(queries, 4), other.search(queries, 4)
        assert torch.equal(a.category_ids, b.category_ids)
        torch.testing.assert_close(a.probs, b.probs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda q, x, y, t: text_classifier(t).search(q, 0), "depth=0 must be", id="depth"),
        pytest.param(lambda q, x, y, t: text_classifier(t).search(q[:, :5], 1), r"must be \(Q, 12\)", id="queries"),
        pytest.param(lambda q, x, y, t: image_text_classifier(t, x, y, 1.5), "share=1.5 must be", id="share"),
        pytest.param(lambda q, x, y, t: class_mean_classifier(x, y, 5), r"whole numbers in \[0, 5\)", id="labels"),
        pytest.param(lambda q, x, y, t: LinearClassifier(t, t), r"weight must be \(D, C\)", id="bias"),
        pytest.param(
            lambda q, x, y, t: gda_classifier(t[:, :5], fit_gda(x, y, 6), 1), "of the same classes", id="gda-classes"
        ),
        pytest.param(lambda q, x, y, t: gda_classifier(t, fit_gda(x, y, 6), -1), "alpha=-1 must be", id="alpha"),
    ],
)
def test_what_does_not_fit_is_refused(world, call, message):
    with pytest.raises(FewShotError, match=message):
        call(*world)
