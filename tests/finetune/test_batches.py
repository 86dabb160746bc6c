"""Training asks what a ranker asks: the same tokens, and a loss that is minus what a ranker reads."""

import pytest
import torch

from rar_mmdet.finetune.batches import IGNORED, BatchMaker, answer_loss, answer_losses
from rar_mmdet.finetune.rows import RankingRow, TaughtQuestions
from rar_mmdet.rankers import TransformersRanker
from rar_mmdet.rankers.asks import Generate, Letter, Likelihood, YesNo
from rar_mmdet.regions import RegionCropper

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm")
WAYS = [Generate(), Letter(), YesNo(), Likelihood()]


@pytest.fixture(scope="module")
def questions_of(tiny, records):
    """A ranker of a family, and two rows of different lengths asked in one way."""
    photo = str(records.parent / "0.png")
    rows = [
        RankingRow(photo, ("cat", "dog", "red car", "salt shaker"), 1, (1, 0, 3, 2)),
        RankingRow(str(records.parent / "1.png"), ("hot dog", "cat"), 0, (0, 1)),
    ]
    rankers = {}

    def get(family, ask):
        if family not in rankers:
            side = 32 if family == "qwen3_vl" else 28
            rankers[family] = TransformersRanker(model=tiny(family), ask="generate", image_size=side)
        ranker = rankers[family]
        cropper = RegionCropper(window="pad").with_size(ranker.crop_size)
        return ranker.loaded, TaughtQuestions(rows, [ask], cropper, ranker.special_tokens())

    return get


@pytest.mark.parametrize("ask", WAYS, ids=lambda ask: ask.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_answers_and_nothing_else(questions_of, family, ask):
    loaded, taught = questions_of(family, ask)
    batch = BatchMaker(loaded, is_packed=False)([taught[0], taught[1]])
    pairs = [pair for one in (taught[0], taught[1]) for pair in zip(one.texts, one.answers, strict=True)]
    tokenizer, end = loaded.dialogue.tokenizer, loaded.dialogue.end_ids
    assert len(batch["input_ids"]) == len(pairs)
    for row, mask, labels, (text, answer) in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], pairs, strict=True
    ):
        learned = labels[labels != IGNORED].tolist()
        assert learned[len(learned) - len(end) :] == end
        assert tokenizer.decode(learned[: len(learned) - len(end)]).strip() == answer
        # The row is the question as it is asked, then the answer.
        real = row[mask.bool()].tolist()
        assert real[-len(learned) :] == learned
        assert real[: -len(learned)][-len(loaded.dialogue.tail(text)) :] == loaded.dialogue.tail(text)


@pytest.mark.parametrize("ask", WAYS, ids=lambda ask: ask.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_share_a_row_have_the_loss_of_a_row_each(questions_of, family, ask):
    loaded, taught = questions_of(family, ask)
    both = [taught[0], taught[1]]
    packed, each = (loaded.placed(BatchMaker(loaded, is_packed)(both)) for is_packed in (True, False))
    assert len(packed["input_ids"]) == 2
    assert answer_loss(loaded.model, packed).item() == pytest.approx(answer_loss(loaded.model, each).item(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_minus_the_likelihood_that_a_ranker_reads(questions_of, tiny, family):
    loaded, taught = questions_of(family, Likelihood())
    ranker = TransformersRanker(model=tiny(family), ask="likelihood", image_size=loaded_side(family))
    question = taught[0].question
    (answers,) = ranker.answer([question])
    scores = dict(zip(question.candidates, answers[0].scores[0], strict=True))
    losses = answer_losses(loaded.model, loaded.placed(BatchMaker(loaded)([taught[0]])))
    assert losses.sum().item() == pytest.approx(-scores[taught[0].answers[0]], abs=2e-4)


def loaded_side(family):
    return 32 if family == "qwen3_vl" else 28


def test_a_loss_over_parts_of_a_batch_adds_up(questions_of):
    loaded, taught = questions_of("llava", Generate())
    whole = loaded.placed(BatchMaker(loaded)([taught[0], taught[1]]))
    parts = [loaded.placed(BatchMaker(loaded)([taught[index]])) for index in (0, 1)]
    count = (whole["labels"] != IGNORED).sum()
    total = sum(answer_loss(loaded.model, part, count) for part in parts)
    torch.testing.assert_close(total, answer_loss(loaded.model, whole), atol=1e-5, rtol=0)
