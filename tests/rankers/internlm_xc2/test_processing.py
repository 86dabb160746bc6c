"""Pixels as the authors' transform gives them, prompts as their evaluation builds them, ids as SentencePiece gives."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from transformers import AutoModelForImageTextToText, AutoProcessor

from rar_mmdet.errors import MissingAssetError, RankerLoadError
from rar_mmdet.rankers.internlm_xc2 import IXC2ImageProcessor, IXC2Processor
from rar_mmdet.rankers.internlm_xc2.processing import CLIP_MEAN, CLIP_STD, load_tokenizer


@pytest.fixture(scope="module")
def processor(published_folder):
    return AutoProcessor.from_pretrained(published_folder)


@pytest.fixture(scope="module")
def spm(tokenizer_file):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(str(tokenizer_file))


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def question(text="which is it?", images=1):
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]


class TestImages:
    @pytest.mark.parametrize("image_hw", [(30, 80), (490, 490), (700, 500), (1, 1)])
    def test_equal_to_the_authors_transform(self, image_hw):
        """torchvision: Resize((490, 490), BICUBIC) on PIL, ToTensor, Normalize."""
        image = Image.fromarray(photo(*image_hw))
        side = transforms.Resize((490, 490), interpolation=transforms.InterpolationMode.BICUBIC)
        expected = transforms.Compose([side, transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)])(image)
        got = IXC2ImageProcessor()(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(got[0], expected, atol=1e-6, rtol=0)

    def test_forms_of_an_image_are_the_same(self):
        array = photo(20, 30)
        forms = [Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1)]
        a, b, c = IXC2ImageProcessor(size={"height": 56, "width": 56})(forms, return_tensors="pt")["pixel_values"]
        assert a.equal(b)
        assert a.equal(c)

    @pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)], ids=["float", "grey"])
    def test_bad_image(self, image):
        with pytest.raises(ValueError, match="An image must be PIL"):
            IXC2ImageProcessor()(image)


class TestTokenizer:
    @settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30))
    def test_ids_equal_sentencepiece(self, processor, spm, text):
        if "\u2581" in text:  # SentencePiece's own sign for a space: both read it as one, decoding cannot tell
            return
        if any(token in text for token in processor.tokenizer.all_special_tokens):  # one id here, plain text there
            return
        assert processor.tokenizer(text, add_special_tokens=False).input_ids == spm.encode(text)

    def test_turn_marks_stop_and_are_not_shown(self, processor):
        tokenizer = processor.tokenizer
        ids = tokenizer("cat[UNUSED_TOKEN_145]\n", add_special_tokens=False).input_ids
        assert tokenizer.convert_tokens_to_ids("[UNUSED_TOKEN_145]") in set(tokenizer.all_special_ids) & set(ids)
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "cat"

    def test_no_file(self, published_folder, copy_of):
        folder = copy_of(published_folder)
        (folder / "tokenizer.model").unlink()
        with pytest.raises(MissingAssetError, match="holds neither tokenizer.model"):
            AutoProcessor.from_pretrained(folder)

    def test_of_another_model(self, tmp_path):
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d"] * 9), model_prefix=str(tmp_path / "tokenizer"), vocab_size=264,
            model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        with pytest.raises(RankerLoadError, match=r"knows no \[UNUSED_TOKEN_146\]"):
            load_tokenizer(tmp_path)

    def test_that_the_conversion_cannot_express(self, tmp_path):
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d"] * 9), model_prefix=str(tmp_path / "tokenizer"), vocab_size=270,
            model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2, add_dummy_prefix=True,
            user_defined_symbols=["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"],
        )  # fmt: skip
        with pytest.raises(RankerLoadError, match="could not be converted: SentencePiece gives"):
            load_tokenizer(tmp_path)


class TestPrompt:
    def test_evaluation_form(self, processor, spm):
        """evaluation/utils.py of the authors: BOS alone, the image, then the turns tokenised in one piece."""
        text = processor.apply_chat_template(question(), add_generation_prompt=True, tokenize=False)
        turns = "[UNUSED_TOKEN_146]user\nwhich is it?[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\n"
        assert text == f"<s><ImageHere>{turns}"
        ids = processor(images=[[photo(9, 9)]], text=[text])["input_ids"][0]
        n = processor.num_image_tokens
        assert ids == [1] + [processor.image_token_id] * n + spm.encode(turns)

    def test_chat_form(self, published_folder, spm):
        processor = IXC2Processor.from_pretrained(published_folder, prompt_form="chat")
        text = processor.apply_chat_template(question(), add_generation_prompt=True, tokenize=False)
        ids = processor(images=[[photo(9, 9)]], text=[text])["input_ids"][0]
        image = [processor.image_token_id] * processor.num_image_tokens
        after = "which is it?[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\n"
        assert ids == [1, *spm.encode("[UNUSED_TOKEN_146]user\n"), *image, 1, *spm.encode(after)]

    def test_unknown_form(self, published_folder):
        with pytest.raises(ValueError, match=r"one of \['chat', 'evaluation'\], got 'talk'"):
            IXC2Processor.from_pretrained(published_folder, prompt_form="talk")

    @pytest.mark.parametrize("text", ["cat", "<s>cat"])
    def test_never_a_second_bos(self, processor, text):
        ids = processor(text=[text])["input_ids"][0]
        assert ids.count(1) == 1
        assert ids[0] == 1
        assert processor(text=["cat"], add_special_tokens=False)["input_ids"][0][0] != 1


class TestBatch:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_of_images_and_text(self, processor, side):
        texts = [
            processor.apply_chat_template(question(t, n), add_generation_prompt=True, tokenize=False)
            for t, n in [("cat", 2), ("the lazy dog", 0), ("zebra", 1)]
        ]
        images = [[photo(5, 9, 1), photo(9, 5, 2)], [], [photo(7, 7, 3)]]
        batch = processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt")
        assert batch["pixel_values"].shape == (3, 3, 42, 42)
        assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [18, 0, 9]
        for b, text in enumerate(texts):
            alone = processor(images=images[b] or None, text=text, return_tensors="pt")["input_ids"][0]
            assert batch["input_ids"][b, batch["attention_mask"][b].bool()].equal(alone)
        everything = [image for group in images for image in group]
        flat = processor(images=everything, text=texts, padding=True, padding_side=side, return_tensors="pt")
        assert flat["pixel_values"].equal(batch["pixel_values"])

    @pytest.mark.parametrize(("images", "given"), [([[]], r"\[0\]"), ([[photo(3, 3)] * 2], r"\[2\]"), (None, r"\[0\]")])
    def test_counts_disagree(self, processor, images, given):
        with pytest.raises(ValueError, match=rf"hold \[1\] '<ImageHere>', the images given are {given}"):
            processor(images=images, text=["<s><ImageHere>x"])

    def test_no_text(self, processor):
        with pytest.raises(ValueError, match="text is needed"):
            processor(images=[[photo(3, 3)]], text=[])


class TestFolder:
    def test_saved_and_loaded_again(self, processor, published_folder, tmp_path):
        shutil.copy(published_folder / "config.json", tmp_path)
        processor.save_pretrained(tmp_path)
        again = AutoProcessor.from_pretrained(tmp_path)
        text = again.apply_chat_template(question(), add_generation_prompt=True, tokenize=False)
        a, b = (p(images=[[photo(9, 9)]], text=[text], return_tensors="pt") for p in (processor, again))
        assert a["input_ids"].equal(b["input_ids"])
        assert a["pixel_values"].equal(b["pixel_values"])

    def test_a_template_in_the_folder_wins(self, published_folder, copy_of):
        folder = copy_of(published_folder)
        (folder / "chat_template.jinja").write_text("mine")
        assert AutoProcessor.from_pretrained(folder).chat_template == "mine"

    def test_processor_and_model_fit_together(self, published_folder, processor):
        """Batched greedy replies equal single ones."""
        model = AutoModelForImageTextToText.from_pretrained(published_folder)
        assert model.config.image_token_id == processor.image_token_id
        texts = [
            processor.apply_chat_template(question(t), add_generation_prompt=True, tokenize=False)
            for t in ("cat", "which is it? the brown fox")
        ]
        images = [[photo(20, 30, 1)], [photo(30, 20, 2)]]
        inputs = processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
        options = {"max_new_tokens": 6, "do_sample": False}
        batch = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        for b in range(2):
            one = processor(images=[images[b]], text=[texts[b]], return_tensors="pt")
            alone = model.generate(**one, **options)[0, one["input_ids"].shape[1] :]
            assert batch[b, : len(alone)].tolist() == alone.tolist()

    def test_published_config_has_no_processor_files(self, published_folder):
        assert not list(published_folder.glob("*processor*"))
        assert "auto_map" in json.loads((published_folder / "tokenizer_config.json").read_text())
