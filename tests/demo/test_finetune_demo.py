"""The fine-tuning demo's questions are fair, and its table says what was found."""

import numpy as np
import pytest
import run_finetune_demo as script
from make_few_shot_world import make_few_shot_world


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "few_shot"
    make_few_shot_world(out, seed=0, photos=(1, 1, 2), workers=1)
    return script.questions(out, seed=1)


def test_questions_have_the_truth_once_among_look_alikes_in_any_place(rows):
    assert len(rows) == 96
    for row in rows:
        assert len(set(row.names)) == script.NAMES
        assert row.names[row.truth].replace(" ", "_") in row.photo.replace(" ", "_")
        assert row.target[0] == row.truth
    counts = np.bincount([row.truth for row in rows], minlength=script.NAMES)
    expected = len(rows) / script.NAMES
    assert ((counts - expected) ** 2 / expected).sum() < 18.47  # chi-square, four degrees of freedom, 0.1 %
    words = [[set(name.split()) for name in row.names] for row in rows]
    shared = [len(names[row.truth] & other) for names, row in zip(words, rows, strict=True) for other in names]
    assert np.mean(shared) > 1.4  # of three words; of random names it would be about a word of five less


def test_the_table_has_a_line_for_each_ranker():
    found = {key: [0.2, 0.3, 0.4] for key in ("plain", "in_context", "tuned_a", "tuned_b", "blank")}
    text = script.table(found, {key: {"text": 0.5, "text+rar": 0.75} for key in found if key != "blank"})
    assert text.splitlines()[0].split() == ["ranker", "rank-1", "of", "5", "text", "text+rar"]
    assert text.count("30.0 ± 10.0") == 5
    assert text.count("75.0") == 4
