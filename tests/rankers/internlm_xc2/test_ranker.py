"""Through TransformersRanker like any other model, from a folder that the converter wrote."""

import pytest
import torch
from PIL import Image

from rar_mmdet.rankers import Likelihood, TransformersRanker
from rar_mmdet.rankers.internlm_xc2.conversion import convert
from rar_mmdet.structures import RankStatus
from rar_mmdet.testing import make_shortlist

NAMES = ["cat", "traffic light", "the lazy dog", "zebra", "fox"]


@pytest.fixture(scope="module")
def folder(published_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted")
    convert(published_folder, out)
    return out


@pytest.fixture
def crops():
    return torch.randint(0, 256, (3, 3, 42, 42), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def names_of(shortlist, row):
    return [NAMES[i] for i in shortlist.category_ids[row].tolist()]


def test_likelihood_equals_one_full_forward_per_candidate(folder, crops):
    ranker = TransformersRanker(model=folder, ask=Likelihood(prompt="name"))
    shortlist = make_shortlist(3, 4, len(NAMES))
    ranking = ranker.rank(crops, shortlist, NAMES)
    assert (ranking.status == int(RankStatus.OK)).all()
    model, processor, talk = ranker.loaded.model, ranker.loaded.processor, ranker.loaded.dialogue
    text = talk.text(ranker.ask.wording.render(()))
    for row in range(3):
        image = Image.fromarray(crops[row].permute(1, 2, 0).numpy())
        prompt = processor(images=[[image]], text=text, return_tensors="pt")
        sums = []
        for name in names_of(shortlist, row):
            ids = [*processor.tokenizer(name, add_special_tokens=False).input_ids, *talk.end_ids]
            full = torch.cat([prompt["input_ids"], torch.tensor([ids])], 1)
            with torch.no_grad():
                logits = model(input_ids=full, pixel_values=prompt["pixel_values"]).logits[0, -len(ids) - 1 : -1]
            sums.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())
        expected = torch.stack(sums).log_softmax(0)
        torch.testing.assert_close(ranking.log_probs[row], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ask", ["likelihood", "letter", "yesno", "generate"])
def test_batches_do_not_change_an_answer(folder, crops, ask):
    shortlist = make_shortlist(3, 4, len(NAMES))
    together, alone = (
        TransformersRanker(model=folder, ask=ask, batch_size=size, limits={"max_fallback_rate": 1.0}).rank(
            crops, shortlist, NAMES
        )
        for size in (3, 1)
    )
    assert together.order.equal(alone.order)
    if ask != "generate":
        torch.testing.assert_close(together.log_probs, alone.log_probs, atol=1e-4, rtol=0)


def test_crop_size_turn_end_and_cleaned_names(folder):
    ranker = TransformersRanker(model=folder)
    assert ranker.crop_size == 42
    assert "[UNUSED_TOKEN_145]" in ranker.special_tokens()
    tokenizer = ranker.loaded.processor.tokenizer
    assert ranker.loaded.dialogue.end_ids == [tokenizer.convert_tokens_to_ids("[UNUSED_TOKEN_145]")]
    assert ranker.loaded.add_special_tokens is False or not ranker.loaded.dialogue.has_doubled_bos
