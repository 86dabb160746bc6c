"""The dataclasses between the stages check themselves."""

import pytest
import torch

from rar_mmdet.structures import Ranking, RankStatus, Shortlist
from rar_mmdet.testing import make_shortlist


def test_shortlist_head_and_rows():
    shortlist = make_shortlist(4, 6, num_categories=9)
    assert shortlist.head(2).category_ids.tolist() == shortlist.category_ids[:, :2].tolist()
    assert shortlist.head(99).depth == 6
    assert shortlist[torch.tensor([True, False, False, True])].probs.tolist() == shortlist.probs[[0, 3]].tolist()
    assert len(shortlist[0:0]) == 0


def test_shortlist_refuses_unequal_shapes():
    with pytest.raises(ValueError, match=r"two equal \(R, N\) shapes, got category_ids \(2, 3\) and probs \(2, 2\)"):
        Shortlist(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2))


def test_shortlist_refuses_float_ids():
    with pytest.raises(ValueError, match="must be int64"):
        Shortlist(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("row", [[0, 0, 2], [1, 2, 3], [-1, 0, 1]], ids=["repeat", "out-of-range", "negative"])
def test_ranking_refuses_what_is_no_permutation(row):
    with pytest.raises(ValueError, match="permutation"):
        Ranking(torch.tensor([row]), None, torch.zeros(1, dtype=torch.int64))


def test_ranking_refuses_wrong_shapes():
    order = torch.tensor([[1, 0]])
    with pytest.raises(ValueError, match="log_probs"):
        Ranking(order, torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="status"):
        Ranking(order, None, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="int64"):
        Ranking(order.float(), None, torch.zeros(1, dtype=torch.int64))


def test_identity_ranking_has_no_opinion_and_takes_zero_regions():
    assert not Ranking.identity(3, 5).has_opinion.any()
    assert Ranking.identity(0, 5).order.shape == (0, 5)
    assert Ranking.identity(2, 0).order.shape == (2, 0)
    status = torch.tensor([RankStatus.OK, RankStatus.PARTIAL, RankStatus.FALLBACK, RankStatus.SKIPPED])
    ranking = Ranking(torch.arange(2).repeat(4, 1), None, status)
    assert ranking.has_opinion.tolist() == [True, True, False, False]
