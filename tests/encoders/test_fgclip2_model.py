"""The native FG-CLIP 2 against numbers of the authors' code, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import fgclip2_oracle as oracle
import numpy as np
import pytest
import torch
from fgclip2_world import GOLDEN, write_folder
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from rar_mmdet.encoders.fgclip2 import Fgclip2Config, Fgclip2Model, grid_of, patch_budget, prepare_images, tokenize
from rar_mmdet.encoders.region_pooling import boxes_in_cells
from rar_mmdet.errors import ConfigError, EncoderLoadError
from rar_mmdet.testing import make_image

FEATURES, LOGITS = {"atol": 2e-5, "rtol": 0}, {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def inputs():
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture(scope="module")
def outputs():
    return load_file(GOLDEN / "outputs.safetensors")


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(GOLDEN)


@pytest.fixture(scope="module")
def pixels(inputs):
    return {name: inputs[name] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def ids_of(inputs, walk):
    return inputs["input_ids_long" if walk == "long" else "input_ids_short"]


class TestLoading:
    def test_every_tensor_of_the_file_arrives_and_no_other(self, model):
        stored, own = load_file(GOLDEN / "model.safetensors"), model.state_dict()
        assert stored.keys() == own.keys()
        for name, tensor in stored.items():
            assert own[name].equal(tensor), name
        assert not list(model.named_buffers())  # a buffer that is not stored is garbage after loading

    def test_auto_classes_take_the_published_folder(self):
        assert type(AutoConfig.from_pretrained(GOLDEN)) is Fgclip2Config
        assert type(AutoModelForCausalLM.from_pretrained(GOLDEN, trust_remote_code=False)) is Fgclip2Model

    def test_the_package_registers_nothing_until_asked(self):
        code = "import sys, rar_mmdet.encoders; print('transformers' in sys.modules)"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.strip() == "False"

    def test_a_saved_model_is_laid_out_as_the_published_one(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        assert stored.keys() == load_file(GOLDEN / "model.safetensors").keys()
        assert AutoModel.from_pretrained(tmp_path).logit_scale.equal(model.logit_scale)

    def test_scales_of_training_are_left_out(self, tmp_path):
        folder = write_folder(tmp_path)
        rewrite(folder, lambda s: s.update(logit_scale_finegraind=torch.ones(1), logit_scale_hardneg=torch.ones(1)))
        AutoModel.from_pretrained(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            pytest.param(lambda s: s.pop("longtext_head.bias"), "missing.*longtext_head.bias", id="missing"),
            pytest.param(lambda s: s.update(other=torch.ones(2)), "unexpected.*other", id="unexpected"),
            pytest.param(
                lambda s: s.update({"boxtext_head.bias": torch.ones(3)}), "another shape.*boxtext_head", id="shape"
            ),
        ],
    )
    def test_a_file_that_does_not_fit_is_refused(self, tmp_path, change, message):
        folder = write_folder(tmp_path)
        rewrite(folder, change)
        with pytest.raises(EncoderLoadError, match=message):
            AutoModel.from_pretrained(folder)


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class TestConfig:
    def test_long_texts_have_the_length_training_gave_them(self):
        assert Fgclip2Config(text_config={"max_position_embeddings": 64}).text_config.longtext_len == 196

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            pytest.param({"text_config": {"hidden_size": 24, "num_attention_heads": 2}}, "must be equal", id="widths"),
            pytest.param({"vision_config": {"num_patches": 15}}, "no square number", id="table"),
            pytest.param({"vision_config": {"num_attention_heads": 5}}, "multiple of num_attention_heads", id="heads"),
            pytest.param({"text_config": {"keep_len": "x"}}, "keep_len must be a whole number", id="no-number"),
        ],
    )
    def test_impossible_sizes_are_refused(self, change, message):
        with pytest.raises(EncoderLoadError, match=message):
            Fgclip2Config(**change)


class TestImages:
    def test_pooled(self, model, pixels, outputs):
        torch.testing.assert_close(model.get_image_features(**pixels), outputs["image_features"], **FEATURES)

    def test_dense(self, model, pixels, outputs):
        torch.testing.assert_close(model.get_image_dense_feature(**pixels), outputs["dense_features"], **FEATURES)

    def test_the_mask_is_known_from_the_shapes(self, model, pixels, outputs):
        found = model.get_image_features(pixels["pixel_values"], spatial_shapes=pixels["spatial_shapes"])
        torch.testing.assert_close(found, outputs["image_features"], **FEATURES)

    def test_regions(self, model, pixels, inputs, outputs):
        found = model.get_image_region_features(
            **pixels, image_sizes=inputs["image_sizes"], region_infos=[inputs[f"boxes_{i}"].tolist() for i in range(4)]
        )
        for i, vectors in enumerate(found):
            torch.testing.assert_close(vectors, outputs[f"region_features_{i}"], **FEATURES)
        torch.testing.assert_close(F.normalize(torch.cat(found), dim=1), outputs["roi_features"], **FEATURES)

    def test_boxes_in_cells_are_exact(self, inputs):
        for i, (size, shape) in enumerate(
            zip(inputs["image_sizes"].tolist(), inputs["spatial_shapes"].tolist(), strict=True)
        ):
            assert boxes_in_cells(inputs[f"boxes_{i}"], size, shape).equal(inputs[f"box_info_{i}"][:, 1:])

    def test_an_image_does_not_depend_on_its_company(self, model, inputs):
        images = [inputs[f"image_{i}"].numpy() for i in range(4)]
        together = model.get_image_features(**prepare_images(images, max_num_patches=24))
        for i, image in enumerate(images):
            alone = model.get_image_features(**prepare_images([image], max_num_patches=24))
            torch.testing.assert_close(alone[0], together[i], **FEATURES)
        mixed = prepare_images([images[0], make_image(300, 300)])  # other budgets, so other padding
        torch.testing.assert_close(
            model.get_image_features(**mixed)[:1], model.get_image_features(**prepare_images(images[:1])), **FEATURES
        )

    def test_half_precision_pools_boxes_in_full(self, pixels, inputs, outputs):
        half = AutoModel.from_pretrained(GOLDEN, dtype=torch.bfloat16)
        boxes = [inputs[f"boxes_{i}"] for i in range(4)]
        found = half.get_image_region_features(**pixels, image_sizes=inputs["image_sizes"], region_infos=boxes)
        assert found[0].dtype == torch.float32
        assert F.cosine_similarity(torch.cat(found), outputs["roi_features"]).min() > 0.999
        assert F.cosine_similarity(half.get_image_features(**pixels).float(), outputs["image_features"]).min() > 0.999

    def test_a_model_without_pooling_head_says_so(self, pixels):
        config = AutoConfig.from_pretrained(GOLDEN)
        config.vision_config.vision_use_head = False
        model = AutoModel.from_config(config)
        assert model.get_image_dense_feature(**pixels).isfinite().all()
        with pytest.raises(ConfigError, match="no pooling head"):
            model.get_image_features(**pixels)

    @pytest.mark.parametrize("shapes", [None, [[4, 4]], [[4, 4], [4, 6], [8, 3], [5, 5]]], ids=str)
    def test_grids_that_do_not_fit_are_refused(self, model, pixels, shapes):
        with pytest.raises(ConfigError, match="spatial_shapes"):
            model.get_image_features(pixels["pixel_values"], spatial_shapes=shapes)


class TestTexts:
    @pytest.mark.parametrize("walk", ["short", "box", "long"])
    @pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
    def test_features(self, model, inputs, outputs, walk, masked):
        mask = inputs["attention_mask_long" if walk == "long" else "attention_mask_short"] if masked else None
        found = model.get_text_features(ids_of(inputs, walk), mask, walk_type=walk.upper())
        torch.testing.assert_close(found, outputs[f"text_{walk}{'_masked' * masked}"], **FEATURES)

    def test_padding_is_part_of_a_text(self, model, inputs, outputs):
        found = model.get_text_features(inputs["input_ids_unpadded"])
        torch.testing.assert_close(found, outputs["text_short_unpadded"], **FEATURES)

    @pytest.mark.parametrize("walk", ["short", "box", "long"])
    def test_logits(self, model, inputs, outputs, pixels, walk):
        out = model(ids_of(inputs, walk), **pixels, walk_type=walk)
        torch.testing.assert_close(out.logits_per_image, outputs[f"logits_per_image_{walk}"], **LOGITS)
        torch.testing.assert_close(out.image_embeds, outputs["image_embeds"], **FEATURES)
        torch.testing.assert_close(out.text_embeds, outputs[f"text_embeds_{walk}"], **FEATURES)

    def test_the_authors_script_for_boxes(self, model, inputs, outputs):
        vectors = F.normalize(model.get_text_features(inputs["class_input_ids"], walk_type="box"), dim=1)
        classes = F.normalize(vectors.reshape(5, 3, -1).mean(dim=1), dim=1)
        torch.testing.assert_close(classes.T, outputs["class_weights"], **FEATURES)
        probs = (100 * outputs["roi_features"] @ classes.T).softmax(dim=1)
        torch.testing.assert_close(probs, outputs["lvis_roi_probs"], **LOGITS)

    @pytest.mark.parametrize(
        ("walk", "length", "message"),
        [
            pytest.param("tall", 64, "walk_type must be one of short, box, long", id="walk"),
            pytest.param("long", 64, "takes exactly 196 tokens, got 64", id="long-too-short"),
            pytest.param("short", 196, "takes at most 64 tokens, got 196", id="short-too-long"),
        ],
    )
    def test_what_a_walk_cannot_take_is_refused(self, model, walk, length, message):
        with pytest.raises(ValueError, match=message):
            model.get_text_features(torch.ones((1, length), dtype=torch.int64), walk_type=walk)


# Each differs from the golden set where a size could be taken for another one.
OTHER_SIZES = {
    "small": {
        "text_config": {
            "vocab_size": 90,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "max_position_embeddings": 16,
            "keep_len": 5,
        },
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 56,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_patches": 49,
            "patch_size": 14,
        },
    },
    "wide": {
        "text_config": {
            "vocab_size": 70,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 9,
            "keep_len": 0,
            "longtext_len": 21,
        },
        "vision_config": {
            "hidden_size": 48,
            "intermediate_size": 30,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_patches": 9,
            "patch_size": 8,
        },
    },
}


class TestOtherSizes:
    """Random weights against a slow computation in float64: every call, whatever config.json says."""

    @pytest.fixture(scope="class", params=OTHER_SIZES)
    def world(self, request, tmp_path_factory):
        torch.manual_seed(0)
        config = Fgclip2Config(**OTHER_SIZES[request.param])
        made = Fgclip2Model(config)
        for tensor in made.state_dict().values():
            tensor.normal_(0, 0.3)
        folder = tmp_path_factory.mktemp("fgclip2") / "model"
        made.save_pretrained(folder)
        state = {name: t.double().numpy() for name, t in load_file(folder / "model.safetensors").items()}
        return AutoModel.from_pretrained(folder), AutoConfig.from_pretrained(folder), state

    def test_images_and_boxes(self, world):
        model, config, state = world
        images = [make_image(70, 55, 1), make_image(40, 150, 2), make_image(33, 20, 3)]
        boxes = [np.array([[0, 0, 55, 70], [10.5, 3, 11, 3.5], [-9, 40, 30, 90]]), np.zeros((0, 4)),
                 np.array([[4.0, 5, 6, 30]])]  # fmt: skip
        inputs = prepare_images(images, config.vision_config.patch_size, max_num_patches=30)
        pooled, grids = model.get_image_features(**inputs), model.get_image_dense_feature(**inputs)
        sizes = [image.shape[:2] for image in images]
        found = model.get_image_region_features(**inputs, image_sizes=sizes, region_infos=boxes)
        for row, shape in enumerate(map(tuple, inputs["spatial_shapes"].tolist())):
            own = shape[0] * shape[1]
            tokens = oracle.image_tokens(state, config, inputs["pixel_values"][row, :own].double().numpy(), shape)
            expected = oracle.image_vector(state, config, tokens)
            np.testing.assert_allclose(pooled[row], expected, atol=1e-4)
            grid = oracle.dense(state, config, tokens)
            np.testing.assert_allclose(grids[row, :own], grid, atol=1e-4)
            assert found[row].shape == (len(boxes[row]), model.config.text_config.projection_size)
            if len(boxes[row]):
                expected = oracle.regions(grid, shape, sizes[row], boxes[row])
                np.testing.assert_allclose(found[row], expected, atol=1e-4)

    @pytest.mark.parametrize("walk", ["short", "box", "long"])
    def test_texts_and_logits(self, world, walk):
        model, config, state = world
        text = config.text_config
        length = text.longtext_len if walk == "long" else text.max_position_embeddings
        ids = torch.randint(0, text.vocab_size, (3, length), generator=torch.Generator().manual_seed(1))
        expected = np.stack([oracle.text_vector(state, config, own, walk) for own in ids.numpy()])
        np.testing.assert_allclose(model.get_text_features(ids, walk_type=walk), expected, atol=1e-4)
        inputs = prepare_images([make_image(70, 55)], config.vision_config.patch_size, max_num_patches=30)
        shape = tuple(inputs["spatial_shapes"][0].tolist())
        own = inputs["pixel_values"][0, : shape[0] * shape[1]].double().numpy()
        image = oracle.image_vector(state, config, oracle.image_tokens(state, config, own, shape))
        cosines = expected @ image / np.linalg.norm(expected, axis=1) / np.linalg.norm(image)
        logits = cosines * np.exp(state["logit_scale"]) + state["logit_bias"]
        np.testing.assert_allclose(model(ids, **inputs, walk_type=walk).logits_per_image[0], logits, atol=1e-4)


class TestProcessing:
    def test_bit_equal_to_the_published_processor(self, inputs, pixels):
        found = prepare_images([inputs[f"image_{i}"].numpy() for i in range(4)], max_num_patches=24)
        for name, tensor in found.items():
            assert tensor.equal(pixels[name]), name

    @pytest.mark.parametrize("budget", [24, 128, 256])
    def test_bit_equal_to_transformers(self, budget):
        images = [make_image(70, 55, 1), make_image(300, 40, 2), make_image(20, 20, 3)]
        found = prepare_images(images, max_num_patches=budget)
        theirs = Siglip2ImageProcessorPil()(images, max_num_patches=budget, return_tensors="pt")
        for name, tensor in found.items():
            assert tensor.equal(theirs[name]), name

    def test_budget_and_grid_follow_the_published_rule(self, inputs):
        for height, width, budget, rows, columns, rows_256, columns_256 in inputs["grid_table"].tolist():
            assert patch_budget((height, width)) == budget
            assert grid_of((height, width), budget) == (rows, columns)
            assert grid_of((height, width), 256) == (rows_256, columns_256)

    def test_texts_end_and_are_padded_on_the_right(self, tmp_path):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(write_folder(tmp_path))
        ids, cut = tokenize(tokenizer, ["A Photo of the CUP", "cup " * 20, ""], 8)
        assert ids.tolist() == [[4, 5, 6, 7, 11, 1, 0, 0], [11] * 7 + [1], [1] + [0] * 7]
        assert cut == 1
        assert tokenize(tokenizer, [], 8)[0].shape == (0, 8)
