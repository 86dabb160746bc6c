"""What is fed behind a prefix: names by their beginnings, each seeing itself alone."""

import random
from itertools import pairwise

import pytest
import torch

from rar_mmdet.rankers.prefix import _last_first, _pack, _Trie

NAMES = [[5, 6, 7, 1], [5, 6, 8, 1], [5, 9, 1], [4, 1], [5, 6, 7, 1], [3]]


def test_what_names_share_is_fed_once_and_every_step_is_there():
    trie = _Trie(NAMES)
    assert [(node.token, node.place) for node in trie.nodes] == [(5, 0), (6, 1), (7, 2), (8, 2), (9, 1), (4, 0)]
    for number, tokens in enumerate(NAMES):
        steps = [(trie.nodes[node].token, token) for name, node, token in trie.steps if name == number]
        assert steps == list(pairwise(tokens))
    for node in trie.nodes:
        path = [trie.nodes[seen].token for seen in node.seen]
        assert len(path) == node.place + 1
        assert any(tokens[: len(path)] == path for tokens in NAMES)


@pytest.mark.parametrize("seed", range(5))
def test_each_slot_sees_its_own_beginning_and_nothing_else(seed):
    drawn = random.Random(seed)
    rows = [
        [[drawn.randrange(4) for _ in range(drawn.randint(1, 5))] for _ in range(drawn.randint(1, 6))] for _ in "ab"
    ]
    for nodes in ([_Trie(row).nodes for row in rows], [_last_first(row) for row in rows]):
        packed = _pack(nodes)
        for b, row in enumerate(nodes):
            for slot, node in enumerate(row):
                seen = packed.visible[b, slot].nonzero().flatten().tolist()
                assert sorted(node.seen) == seen
                assert node.seen[-1] == slot
                assert packed.place[b, list(node.seen)].tolist() == list(range(node.place + 1))
            padding = packed.visible[b, len(row) :, len(row) :]
            assert torch.equal(padding, torch.eye(len(padding), dtype=torch.bool))


def test_last_tokens_stand_first():
    nodes = _last_first([[1, 2, 3], [4], [5, 6]])
    assert [node.token for node in nodes[:3]] == [3, 4, 6]
    assert _pack([[], []]).token_ids.shape == (2, 0)
