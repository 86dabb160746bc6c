"""Settings chosen on val photos: the first best of the grid."""

import pytest
import torch
from torch.nn.functional import normalize

from rar_mmdet.errors import FewShotError
from rar_mmdet.memory.few_shot import fit_gda, gda_logits, tip_logits
from rar_mmdet.memory.tuning import GDA_ALPHAS, tune_gda, tune_tip


@pytest.fixture
def world():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 8, generator=generator)

    def near(labels, noise):
        return normalize(centres[labels] + noise * torch.randn(len(labels), 8, generator=generator), dim=1)

    labels, val_labels = torch.arange(12) % 4, torch.arange(40) % 4
    text = near(torch.arange(4), 2.0).T.contiguous()
    return near(val_labels, 1.2), val_labels, near(labels, 1.0), labels, text


def test_gda_takes_the_first_best_alpha(world):
    val, val_labels, exemplars, labels, text = world
    gda = fit_gda(exemplars, labels, 4)
    right = [int((gda_logits(val, text, gda, a).argmax(dim=1) == val_labels).sum()) for a in GDA_ALPHAS]
    assert len(set(right)) > 1
    assert tune_gda(val, val_labels, text, gda) == GDA_ALPHAS[right.index(max(right))]
    assert tune_gda(val, val_labels, text, gda, (1.0, 1.0, 1.0)) == 1.0


def test_tip_takes_the_first_best_of_the_released_grid(world):
    val, val_labels, keys, labels, text = world
    best = (-1, None)
    for i in range(15):
        for j in range(6):
            beta, alpha = 0.1 + i * (7 - 0.1) / 15, 0.1 + j * (30 - 0.1) / 6
            right = int((tip_logits(val, keys, labels, text, alpha, beta).argmax(dim=1) == val_labels).sum())
            if right > best[0]:
                best = (right, (alpha, beta))
    assert tune_tip(val, val_labels, keys, labels, text, scale=(7, 30), steps=(15, 6)) == pytest.approx(best[1])


def test_what_cannot_be_tuned_is_refused(world):
    val, val_labels, keys, labels, text = world
    gda = fit_gda(keys, labels, 4)
    with pytest.raises(FewShotError, match="takes val photos and a label for each: got 0"):
        tune_gda(val[:0], val_labels[:0], text, gda)
    with pytest.raises(FewShotError, match="got 40 and"):
        tune_gda(val, val_labels[:3], text, gda)
    with pytest.raises(FewShotError, match="nothing to choose from"):
        tune_gda(val, val_labels, text, gda, ())
    with pytest.raises(FewShotError, match="scale=.0, 3. must be"):
        tune_tip(val, val_labels, keys, labels, text, scale=(0, 3))
