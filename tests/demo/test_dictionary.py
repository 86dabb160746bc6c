"""The demo's dictionary reads as WordNet does, holds all names of the world among others, and is always the same."""

from make_dictionary import NUM_OTHERS, write_dictionary
from world import CLASS_NAMES

from rar_mmdet.classification.naming import read_nouns


def test_the_dictionary(tmp_path):
    nouns = read_nouns(write_dictionary(tmp_path).parent)
    assert len(set(nouns.names)) == len(nouns) == len(CLASS_NAMES) + NUM_OTHERS
    assert set(CLASS_NAMES) < set(nouns.names)
    assert len(set(nouns.first_senses)) == len(nouns)
    assert (tmp_path / "index.noun").read_bytes() == write_dictionary(tmp_path / "again").read_bytes()
