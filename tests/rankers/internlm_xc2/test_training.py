"""Adapters are trained on it as on any other model: its loss, where gradients go, and what is left."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from rar_mmdet.finetune.batches import IGNORED, BatchMaker, answer_loss
from rar_mmdet.finetune.rows import TaughtQuestion
from rar_mmdet.finetune.settings import LoraSettings
from rar_mmdet.finetune.training import with_lora
from rar_mmdet.rankers import TransformersRanker
from rar_mmdet.rankers.asks import Generate, Letter, Likelihood, YesNo
from rar_mmdet.rankers.internlm_xc2.conversion import convert
from rar_mmdet.rankers.questions import Question

NAMES = ("quick brown fox", "lazy dog", "zebra")
WAYS = [Generate(), Letter(), YesNo(), Likelihood()]


@pytest.fixture(scope="module")
def folder(published_folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("trained")
    convert(published_folder, target)
    return target


@pytest.fixture
def ranker(folder):
    return TransformersRanker(model=folder)


def taught(ask, side):
    crop = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    question = Question(crop, NAMES)
    return TaughtQuestion(question, tuple(ask.texts(question)), tuple(ask.target(question, 1)))


def test_its_loss_is_the_cross_entropy_of_the_next_token(golden_folder, golden):
    model = AutoModelForImageTextToText.from_pretrained(golden_folder)
    ids, pixels = golden.sample(0)
    labels = ids.clone()
    labels[:, :-5] = -100
    out = model(input_ids=ids, pixel_values=pixels, labels=labels)
    wanted = functional.cross_entropy(out.logits[0, -6:-1].float(), ids[0, -5:])
    torch.testing.assert_close(out.loss, wanted)
    torch.testing.assert_close(
        model(input_ids=ids, pixel_values=pixels, labels=labels, num_items_in_batch=torch.tensor(10)).loss, wanted / 2
    )


@pytest.mark.parametrize("ask", WAYS, ids=lambda ask: ask.name)
def test_labels_are_the_answers_and_nothing_else(ranker, ask):
    loaded, one = ranker.loaded, taught(ask, ranker.crop_size)
    batch, end = BatchMaker(loaded, is_packed=False)([one]), loaded.dialogue.end_ids
    assert len(batch["labels"]) == len(one.texts)
    for row, labels, answer in zip(batch["input_ids"], batch["labels"], one.answers, strict=True):
        learned = labels[labels != IGNORED].tolist()
        assert learned[len(learned) - len(end) :] == end
        assert loaded.dialogue.tokenizer.decode(learned[: len(learned) - len(end)]).strip() == answer
        assert row.tolist()[-len(learned) :] == learned


@pytest.mark.parametrize("ask", WAYS, ids=lambda ask: ask.name)
def test_texts_that_share_a_row_have_the_loss_of_a_row_each(ranker, ask):
    loaded, one = ranker.loaded, taught(ask, ranker.crop_size)
    packed, each = (loaded.placed(BatchMaker(loaded, is_packed)([one])) for is_packed in (True, False))
    assert (len(packed["input_ids"]), len(each["input_ids"])) == (1, len(one.texts))
    assert answer_loss(loaded.model, packed).item() == pytest.approx(answer_loss(loaded.model, each).item(), abs=1e-5)


def test_our_loss_is_the_one_of_its_labels(ranker):
    loaded = ranker.loaded
    batch = loaded.placed(BatchMaker(loaded, is_packed=False)([taught(YesNo(), ranker.crop_size)]))
    labels = batch["input_ids"].new_full(batch["input_ids"].shape, -100)
    labels[:, labels.shape[1] - batch["labels"].shape[1] :] = batch["labels"]
    kept = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    torch.testing.assert_close(answer_loss(loaded.model, batch), loaded.model(**kept, labels=labels).loss)


def test_an_adapter_learns_and_fits(ranker, folder, tmp_path):
    loaded = ranker.loaded
    model = with_lora(loaded.model, LoraSettings(rank=2, dropout=0.0), str(folder), seed=0)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learned) == 2 * 2 * 5  # A and B on five linears in each of two layers; partial LoRA stays as it is
    assert all(".base.lora_" in name and "vit." not in name for name in learned)
    loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = loaded.placed(BatchMaker(loaded)([taught(Letter(), ranker.crop_size)]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before = answer_loss(model, batch)
    before.backward()
    optimizer.step()
    assert answer_loss(model, batch) < before
    model.eval()
    model.save_pretrained(tmp_path)
    found = TransformersRanker(model=folder, adapter=tmp_path)
    question = Question(taught(Letter(), ranker.crop_size).question.crop, NAMES)
    (wanted,), (scores,) = (list(one.answer([question])) for one in (ranker, found))
    assert scores[0].scores[0] == pytest.approx(wanted[0].scores[0], abs=2e-4)
