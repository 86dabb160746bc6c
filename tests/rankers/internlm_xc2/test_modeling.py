"""Against numbers of the authors' code: alone, in batches, padded on either side, through a cache."""

import copy
import inspect

import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, LlamaForCausalLM

from rar_mmdet.rankers.internlm_xc2 import IXC2Config, IXC2ForConditionalGeneration
from rar_mmdet.rankers.kv_cache import cache_name

LOGITS = {"atol": 1e-4, "rtol": 0}
LOGLIK = {"atol": 1e-3, "rtol": 0}
FEATURES = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def padded(rows, pad_id, side):
    """Rows of ids (1, L_i) as one batch with its mask."""
    length = max(row.shape[1] for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        where = slice(length - row.shape[1], None) if side == "left" else slice(0, row.shape[1])
        ids[b, where], mask[b, where] = row[0], 1
    return ids, mask


def real(logits, mask, b):
    return logits[b, mask[b].bool()]


def continuation_log_probs(logits, tokens):
    """logits (T + 1, V): the position before each token, then after the last."""
    return logits[:-1].float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]


class TestGolden:
    def test_features(self, model, golden):
        out = model.get_image_features(golden.inputs["pixel_values"])
        torch.testing.assert_close(out.last_hidden_state, golden.outputs["vision_features"], **FEATURES)
        torch.testing.assert_close(out.pooler_output, golden.outputs["image_features"], **FEATURES)

    @pytest.mark.parametrize("i", [0, 1, 2])
    @pytest.mark.parametrize("with_mask", [True, False], ids=["mask", "no-mask"])
    def test_logits_at_every_position(self, model, golden, i, with_mask):
        ids, pixels = golden.sample(i)
        mask = torch.ones_like(ids) if with_mask else None
        logits = model(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
        torch.testing.assert_close(logits, golden.outputs[f"logits_{i}"], **LOGITS)

    def test_text_only(self, model, golden):
        logits = model(input_ids=golden.inputs["text_only_ids"]).logits
        torch.testing.assert_close(logits, golden.outputs["text_only_logits"], **LOGITS)

    @pytest.mark.parametrize("i", [0, 1, 2])
    def test_plora_only_where_the_image_is(self, model, golden, i):
        ids, pixels = golden.sample(i)
        embeds, image_mask = model._embed(ids, pixels)
        assert image_mask.equal(golden.inputs[f"im_mask_{i}"])
        off = model(inputs_embeds=embeds).logits
        torch.testing.assert_close(off, golden.outputs[f"logits_noplora_{i}"], **LOGITS)
        on = model(inputs_embeds=embeds, image_mask=image_mask).logits
        torch.testing.assert_close(on, golden.outputs[f"logits_{i}"], **LOGITS)
        assert (on - off).abs().max() > 1

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_one_batch_of_images_and_text_padded(self, model, golden, side):
        rows = [golden.sample(0)[0], golden.inputs["text_only_ids"], golden.sample(1)[0], golden.sample(2)[0]]
        ids, mask = padded(rows, model.config.pad_token_id, side)
        pixels = torch.cat([golden.sample(i)[1] for i in range(3)])
        logits = model(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
        expected = [golden.outputs[n] for n in ("logits_0", "text_only_logits", "logits_1", "logits_2")]
        for b, want in enumerate(expected):
            torch.testing.assert_close(real(logits, mask, b), want[0], **LOGITS)

    @pytest.mark.parametrize("i", [0, 1])
    @pytest.mark.parametrize("k", [0, 1, 2])
    def test_log_likelihood_full_and_cached(self, model, golden, i, k):
        ids, pixels = golden.sample(i)
        tokens = golden.inputs[f"continuation_{k}"]
        full = model(input_ids=torch.cat([ids, tokens[None]], 1), pixel_values=pixels).logits[0, ids.shape[1] - 1 :]
        head = model(input_ids=ids, pixel_values=pixels, use_cache=True)
        tail = model(input_ids=tokens[None], past_key_values=head.past_key_values)
        cached = torch.cat([head.logits[:, -1:], tail.logits], 1)[0]
        for logits in (full, cached):
            terms = continuation_log_probs(logits, tokens)
            torch.testing.assert_close(terms, golden.outputs[f"loglik_tokens_{i}_{k}"], **LOGLIK)
            torch.testing.assert_close(terms.sum(), golden.outputs["loglik"][i, k], **LOGLIK)

    @pytest.mark.parametrize("i", [0, 1])
    @pytest.mark.parametrize("use_cache", [True, False])
    def test_greedy(self, model, golden, i, use_cache):
        ids, pixels = golden.sample(i)
        out = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=8, do_sample=False, use_cache=use_cache)
        assert out[0, ids.shape[1] :].tolist() == golden.outputs[f"greedy_ids_{i}"].tolist()

    def test_greedy_left_padded_batch(self, model, golden):
        ids, mask = padded([golden.sample(0)[0], golden.sample(1)[0]], model.config.pad_token_id, "left")
        out = model.generate(
            input_ids=ids, attention_mask=mask, pixel_values=golden.inputs["pixel_values"], max_new_tokens=8,
            do_sample=False,
        )  # fmt: skip
        for i in range(2):
            assert out[i, ids.shape[1] :].tolist() == golden.outputs[f"greedy_ids_{i}"].tolist()


class TestCache:
    @pytest.mark.parametrize("name", ["cache", "past_key_values"])
    def test_either_name_of_the_cache_is_heard(self, model, golden, name):
        """transformers calls it `cache` from 5.24 on; what `generate` hands over must never be taken for nothing."""
        ids, pixels = golden.sample(0)
        head = model(input_ids=ids[:, :-3], pixel_values=pixels, use_cache=True)
        tail = model(input_ids=ids[:, -3:], **{name: head[cache_name()]})
        torch.testing.assert_close(torch.cat([head.logits, tail.logits], 1), golden.outputs["logits_0"], **LOGITS)
        names = inspect.signature(LlamaForCausalLM.forward).parameters
        assert cache_name() in names

    @pytest.mark.parametrize("cut", [3, 10, 21])
    def test_a_prompt_in_two_steps_equals_one(self, model, golden, cut):
        """Also where the first step is text and the image comes in the second."""
        ids, pixels = golden.sample(2)
        before = int((ids[0] == golden.image_token_id).int().argmax())
        cut = min(cut, before) if cut == 3 else max(cut, before + model.config.num_image_tokens)
        in_first = cut > before
        first = model(input_ids=ids[:, :cut], pixel_values=pixels if in_first else None, use_cache=True)
        second = model(
            input_ids=ids[:, cut:], pixel_values=None if in_first else pixels, past_key_values=first.past_key_values
        )
        logits = torch.cat([first.logits, second.logits], 1)
        torch.testing.assert_close(logits, golden.outputs["logits_2"], **LOGITS)

    @pytest.mark.parametrize("explicit_positions", [True, False])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_shared_prefix_repeated_for_each_candidate(self, model, golden, explicit_positions, side):
        """Prefill once per crop, repeat the cache for K continuations, score them right-padded in one step."""
        prompts, mask = padded([golden.sample(0)[0], golden.sample(1)[0]], model.config.pad_token_id, side)
        tokens, token_mask = padded([golden.inputs[f"continuation_{k}"][None] for k in range(3)], 0, "right")
        k = len(tokens)
        positions = (mask.cumsum(1) - 1).clamp_min(0) if explicit_positions else None
        last = 1 if side == "left" else 0
        head = model(
            input_ids=prompts, attention_mask=mask, pixel_values=golden.inputs["pixel_values"],
            position_ids=positions, use_cache=True, logits_to_keep=last,
        )  # fmt: skip
        ends = [-1, -1] if side == "left" else (mask.sum(1) - 1).tolist()
        cache = copy.deepcopy(head.past_key_values)
        cache.batch_repeat_interleave(k)
        following = mask.sum(1).repeat_interleave(k)[:, None] + torch.arange(tokens.shape[1])
        tail = model(
            input_ids=tokens.repeat(2, 1),
            attention_mask=torch.cat([mask.repeat_interleave(k, 0), token_mask.repeat(2, 1)], 1),
            position_ids=following if explicit_positions else None,
            past_key_values=cache,
        ).logits.unflatten(0, (2, k))
        for i in range(2):
            for j in range(k):
                n = int(token_mask[j].sum())
                logits = torch.cat([head.logits[i, ends[i]][None], tail[i, j, :n]])
                score = continuation_log_probs(logits, tokens[j, :n]).sum()
                torch.testing.assert_close(score, golden.outputs["loglik"][i, j], **LOGLIK)

    def test_packed_candidates_behind_one_prefix(self, model, golden):
        """The ranker's way: all candidates of a crop in one row, told apart by a 4-D additive mask."""
        from rar_mmdet.rankers.prefix import sequence_log_probs

        ids, mask = padded([golden.sample(0)[0], golden.sample(1)[0]], model.config.pad_token_id, "left")
        inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": golden.inputs["pixel_values"]}
        names = [golden.inputs[f"continuation_{k}"].tolist() for k in range(3)]
        scores = sequence_log_probs(model, inputs, [names, names])
        torch.testing.assert_close(torch.tensor(scores), golden.outputs["loglik"], **LOGLIK)

    def test_generated_tokens_get_no_plora(self, model, golden):
        """Greedy steps over the cache equal a full forward in which only the prompt's image is marked."""
        ids, pixels = golden.sample(0)
        new = golden.outputs["greedy_ids_0"][None]
        embeds, image_mask = model._embed(ids, pixels)
        everywhere = torch.cat([image_mask, torch.ones_like(new, dtype=torch.bool)], 1)
        nowhere = torch.cat([image_mask, torch.zeros_like(new, dtype=torch.bool)], 1)
        embeds = torch.cat([embeds, model.get_input_embeddings()(new)], 1)
        cache = model(input_ids=ids, pixel_values=pixels, use_cache=True).past_key_values
        steps = torch.cat([model(input_ids=t[None], past_key_values=cache).logits for t in new.T], 1)
        length = ids.shape[1]
        full = model(inputs_embeds=embeds, image_mask=nowhere).logits[:, length:]
        torch.testing.assert_close(steps, full, **LOGITS)
        wrong = model(inputs_embeds=embeds, image_mask=everywhere).logits[:, length:]
        assert (wrong - full).abs().max() > 0.1


class TestBehaviour:
    def test_two_images_in_a_row_beside_none_and_beams(self, model, golden):
        """Beams repeat rows with all their images: beam search of a batch equals that of each row alone."""
        image = torch.full((1, model.config.num_image_tokens), golden.image_token_id)
        two = torch.cat([torch.tensor([[1, 5]]), image, torch.tensor([[7]]), image, torch.tensor([[9, 4]])], 1)
        text = golden.inputs["text_only_ids"]
        ids, mask = padded([two, text], model.config.pad_token_id, "left")
        options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "eos_token_id": -1}
        pixels = golden.inputs["pixel_values"]
        batch = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, **options)[:, ids.shape[1] :]
        alone = model.generate(input_ids=two, pixel_values=pixels, **options)[:, two.shape[1] :]
        text_alone = model.generate(input_ids=text, **options)[:, text.shape[1] :]
        assert batch.tolist() == [*alone.tolist(), *text_alone.tolist()]
        swapped = model(input_ids=two, pixel_values=pixels.flip(0)).logits
        assert (swapped - model(input_ids=two, pixel_values=pixels).logits).abs().max() > 1e-3

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_stays_close(self, golden_folder, golden, dtype):
        model = AutoModelForImageTextToText.from_pretrained(golden_folder, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        ids, pixels = golden.sample(0)
        logits = model(input_ids=ids, pixel_values=pixels.to(dtype)).logits.float()
        scale = golden.outputs["logits_0"].std()
        assert (logits - golden.outputs["logits_0"]).abs().mean() < 0.05 * scale

    def test_logits_to_keep(self, model, golden):
        ids, pixels = golden.sample(0)
        full = model(input_ids=ids, pixel_values=pixels).logits
        kept = model(input_ids=ids, pixel_values=pixels, logits_to_keep=3).logits
        torch.testing.assert_close(kept, full[:, -3:])
        kept = model(input_ids=ids, pixel_values=pixels, logits_to_keep=torch.tensor([2, 5])).logits
        torch.testing.assert_close(kept, full[:, [2, 5]])

    def test_plora_scale_is_alpha_over_rank(self, golden_folder, golden):
        """Twice alpha, half B: the same model."""
        config = IXC2Config.from_pretrained(golden_folder, plora_alpha=16)
        model = AutoModelForImageTextToText.from_pretrained(golden_folder, config=config)
        for name, parameter in model.named_parameters():
            if "Plora_B" in name:
                parameter.mul_(0.5)
        ids, pixels = golden.sample(0)
        torch.testing.assert_close(
            model(input_ids=ids, pixel_values=pixels).logits, golden.outputs["logits_0"], **LOGITS
        )

    def test_saved_under_published_names_and_loaded_again(self, model, golden, tmp_path):
        from safetensors import safe_open

        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert "model.layers.0.attention.wqkv.weight" in names
        assert not [name for name in names if ".base." in name]
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        ids, pixels = golden.sample(0)
        torch.testing.assert_close(
            again(input_ids=ids, pixel_values=pixels).logits, golden.outputs["logits_0"], **LOGITS
        )

    def test_device_map_auto(self, golden_folder, golden):
        pytest.importorskip("accelerate", reason="device_map needs accelerate")
        model = AutoModelForImageTextToText.from_pretrained(golden_folder, device_map="auto")
        ids, pixels = golden.sample(0)
        out = model(input_ids=ids.to(model.device), pixel_values=pixels.to(model.device)).logits.cpu()
        torch.testing.assert_close(out, golden.outputs["logits_0"], atol=1e-3, rtol=0)

    def test_four_bit_saved_and_loaded_again(self, golden_folder, golden, tmp_path):
        """Only the language model's base linears are packed; the saved folder needs no options to load."""
        pytest.importorskip("accelerate", reason="4 bit needs accelerate")
        bnb = pytest.importorskip("bitsandbytes", reason="4 bit needs bitsandbytes")
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        model = AutoModelForImageTextToText.from_pretrained(golden_folder, quantization_config=settings)
        packed = {name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
        assert packed == {name for name, _ in model.named_modules() if name.endswith(".base")}
        model.save_pretrained(tmp_path)  # before its first use: on a CPU bitsandbytes then repacks the weights
        ids, pixels = golden.sample(0)
        logits = model(input_ids=ids.to(model.device), pixel_values=pixels.to(model.device)).logits.cpu()
        assert (logits - golden.outputs["logits_0"]).abs().mean() < 0.5 * golden.outputs["logits_0"].std()
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        got = again(input_ids=ids.to(again.device), pixel_values=pixels.to(again.device)).logits.cpu()
        torch.testing.assert_close(got, logits)

    @pytest.mark.gpu
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_on_a_gpu(self, golden_folder, golden, attention):
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        model = AutoModelForImageTextToText.from_pretrained(golden_folder, attn_implementation=attention).cuda()
        ids, pixels = golden.sample(0)
        logits = model(input_ids=ids.cuda(), pixel_values=pixels.cuda()).logits.cpu()
        torch.testing.assert_close(logits, golden.outputs["logits_0"], atol=1e-3, rtol=0)


class TestBadInput:
    def test_more_placeholders_than_images(self, model, golden):
        ids, _ = golden.sample(0)
        with pytest.raises(ValueError, match=r"rows hold \[16\] tokens of id 200, an image takes 16, and 0 images"):
            model(input_ids=ids)

    def test_part_of_an_image(self, model, golden):
        ids, pixels = golden.sample(0)
        ids[0, 1] = 5
        with pytest.raises(ValueError, match=r"Placeholders and images disagree: rows hold \[15\]"):
            model(input_ids=ids, pixel_values=pixels)

    def test_images_of_another_size(self, model, golden):
        ids, pixels = golden.sample(0)
        with pytest.raises(ValueError, match=r"28\*28.*doesn't match model"):
            model(input_ids=ids, pixel_values=pixels[..., :28, :28])

    def test_mask_of_the_continuation_only(self, model, golden):
        ids, pixels = golden.sample(0)
        cache = model(input_ids=ids, pixel_values=pixels, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="covers 2 tokens, but the cache holds 22 and this step adds 2"):
            model(input_ids=torch.tensor([[3, 4]]), attention_mask=torch.ones(1, 2), past_key_values=cache)

    def test_no_input(self, model):
        with pytest.raises(ValueError, match="Give input_ids or inputs_embeds"):
            model()

    def test_both_inputs(self, model, golden):
        ids, pixels = golden.sample(0)
        with pytest.raises(ValueError, match="give no input_ids or pixel_values"):
            model(input_ids=ids, inputs_embeds=torch.zeros(1, 2, 64))
        with pytest.raises(ValueError, match="image_mask goes with inputs_embeds"):
            model(input_ids=ids, pixel_values=pixels, image_mask=ids > 0)

    def test_options_that_would_do_nothing(self, model, golden):
        with pytest.raises(ValueError, match="output_attentions: not supported"):
            model(input_ids=golden.inputs["text_only_ids"], output_attentions=True)
        with pytest.raises(ValueError, match="labels need the logits of all tokens"):
            model(input_ids=golden.inputs["text_only_ids"], labels=golden.inputs["text_only_ids"], logits_to_keep=1)


def test_sizes_come_from_the_config():
    """Nothing of the golden set's or the published sizes is in the code: an odd model runs."""
    vision = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20,
              "image_size": 30, "patch_size": 10}  # fmt: skip
    config = IXC2Config(
        vocab_size=77, hidden_size=60, intermediate_size=44, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, plora_rank=5, plora_alpha=3, vision_config=vision, bias=True, rope_theta=500.0,
    )  # fmt: skip
    model = IXC2ForConditionalGeneration(config).eval()
    ids = torch.tensor([[1] + [77] * 9 + [4, 5]])
    assert model(input_ids=ids, pixel_values=torch.randn(1, 3, 30, 30)).logits.shape == (1, 12, 77)
