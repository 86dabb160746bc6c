"""RegionCLIP against open_clip's networks, a slow loop, and numbers of the authors' code where they are at hand."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from regionclip_world import DIM, WIDTH, build_networks, published_names, write_checkpoint
from safetensors.torch import load_file, save_file
from slow_pooling import pool
from torch.nn import functional as F  # noqa: N812

from rar_mmdet.emission import TopPairs
from rar_mmdet.encoders import RegionClipEncoder, RegionEncoder
from rar_mmdet.encoders.regionclip import RegionClip, read_class_embeddings, region_logits, zero_shot_detections
from rar_mmdet.errors import ConfigError, EncoderLoadError, ImageReadError, MissingAssetError
from rar_mmdet.testing import make_boxes, make_image

# 5 MB of numbers are too many for the repository; README.md beside them says what is what.
GOLDEN = Path(os.environ.get("RAR_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")) / "regionclip_a"


@pytest.fixture(scope="module", params=[7, 9], ids=["rn50-like", "rn50x4-like"])
def oracle(request):
    return build_networks(request.param)


@pytest.fixture(scope="module")
def checkpoint(oracle, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("regionclip") / "model.pth", oracle)


@pytest.fixture(scope="module")
def model(checkpoint):
    return RegionClip.from_checkpoint(checkpoint, min_size=96, max_size=160)


class TestAgainstOpenClip:
    def test_features_of_a_photo(self, model, oracle):
        resnet, image = oracle[0], make_image(60, 80)
        pixels = model.resize(image)[None].float() / 255
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        with torch.no_grad():
            expected = resnet.layer3(resnet.layer2(resnet.layer1(resnet.stem((pixels - mean) / std))))
        torch.testing.assert_close(model.image_features(image), expected, atol=1e-5, rtol=1e-5)

    def test_the_last_stage_and_pooling(self, model, oracle):
        resnet, side = oracle[0], model.backbone.box_side
        maps = torch.randn(3, WIDTH * 16, side, side)
        with torch.no_grad():
            expected = resnet.attnpool(resnet.layer4(maps))
            torch.testing.assert_close(model.backbone.pool(maps), expected, atol=1e-4, rtol=1e-4)

    def test_texts(self, model, oracle):
        ids = open_clip.get_tokenizer("RN50")(["a photo of a cup", "star", "a very long text " * 30])
        with torch.no_grad():
            expected = oracle[1].encode_text(ids)
        torch.testing.assert_close(model.encode_tokens(ids), expected, atol=1e-5, rtol=1e-5)


class TestBoxes:
    def test_are_read_as_a_slow_loop_does(self, model):
        image, boxes = make_image(60, 80), make_boxes(6, 60, 80)
        features = model.image_features(image)
        at = model._boxes_at(boxes, (60, 80))
        found = model.backbone.read_boxes(features, at)
        grid = features[0].double().numpy()
        for row, box in zip(found, at.double().numpy() / 16, strict=True):
            np.testing.assert_allclose(row.numpy(), pool(grid, box, model.backbone.box_side), atol=2e-5)

    def test_number_order_and_batches_do_not_matter(self, model, monkeypatch):
        image, boxes = make_image(60, 80), make_boxes(7, 60, 80)
        together = model.region_features(image, boxes)
        torch.testing.assert_close(model.region_features(image, boxes.flip(0)).flip(0), together, atol=1e-4, rtol=1e-4)
        monkeypatch.setattr(model, "region_batch", 2)
        torch.testing.assert_close(model.region_features(image, boxes), together, atol=1e-4, rtol=1e-4)

    def test_none(self, model):
        assert model.region_features(make_image(), []).shape == (0, DIM)
        assert model.encode_tokens(torch.zeros((0, 77), dtype=torch.int64)).shape == (0, DIM)

    @pytest.mark.parametrize(
        ("image_hw", "expected"),
        [((60, 80), (96, 128)), ((80, 60), (128, 96)), ((50, 200), (40, 160)), ((1, 300), (1, 160))],
        ids=str,
    )
    def test_short_side_unless_the_long_one_is_too_long(self, model, image_hw, expected):
        assert model.resized_hw(image_hw) == expected
        assert model.resize(make_image(*image_hw)).shape == (3, *expected)

    def test_photos_of_any_shape_equal_float64(self, model, oracle):
        """The whole way of boxes that are partly outside, tiny or at a corner."""
        resnet, side = copy.deepcopy(oracle[0]).double(), model.backbone.box_side
        mean, std = (
            torch.tensor(v).double().view(3, 1, 1)
            for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        for height, width in ((37, 211), (5, 5), (161, 120)):
            image = make_image(height, width)
            far, middle = (width - 0.5, height - 0.5, width + 3, height + 3), (width / 2, height / 2)
            boxes = np.array(
                [(0, 0, width, height), (-9, -7, *middle), far, (*middle, middle[0] + 0.01, middle[1] + 0.01)]
            )
            pixels = (model.resize(image).double() / 255 - mean) / std
            new_height, new_width = pixels.shape[1:]
            features = resnet.layer3(resnet.layer2(resnet.layer1(resnet.stem(pixels[None]))))[0].numpy()
            scaled = np.clip(
                boxes * np.array([new_width / width, new_height / height] * 2), 0, [new_width, new_height] * 2
            )
            maps = np.stack([pool(features, box.astype(np.float32).astype(np.float64) / 16, side) for box in scaled])
            expected = resnet.attnpool(resnet.layer4(torch.from_numpy(maps))).float()
            torch.testing.assert_close(model.region_features(image, boxes), expected, atol=1e-5, rtol=1e-5)

    def test_a_photo_too_thin_for_the_network_is_refused(self, model):
        with pytest.raises(ImageReadError, match="a photo of 300x4 px becomes 160x2 px, but RegionCLIP needs 16 px"):
            model.region_features(np.zeros((4, 300, 3), dtype=np.uint8), [[0, 0, 9, 4]])


class TestScores:
    def test_background_is_a_cosine_of_zero(self):
        features, classes = torch.randn(4, 8), torch.randn(3, 8)
        logits = region_logits(features, classes)
        assert logits[:, 3].abs().max() == 0
        expected = F.cosine_similarity(features[:, None], classes[None], dim=2) / 0.01
        torch.testing.assert_close(logits[:, :3], expected, atol=1e-4, rtol=0)

    def test_the_config_s_emission_is_its_own(self):
        """`configs/regionclip_lvis.py` names TopPairs with these settings; boxes lie within the photo."""
        from mmengine.config import Config

        config = Config.fromfile(Path(__file__).parents[2] / "configs" / "regionclip_lvis.py")
        settings = dict(config.model.recognizer.emission)
        assert settings.pop("type") == "TopPairs"
        assert config.model.recognizer.memory.temperature == 0.01
        boxes = torch.cat([make_boxes(40, 60, 80), make_boxes(40, 60, 80) + 1]).clamp(max=60)
        logits = region_logits(torch.randn(80, 8), torch.randn(60, 8), temperature=0.1)
        probabilities = logits.softmax(dim=1)
        expected = zero_shot_detections(boxes, probabilities, (60, 80))
        ids = torch.arange(60).expand(80, -1)
        found = TopPairs(**settings).select(probabilities[:, :-1], ids, boxes, torch.ones(80))
        assert len(expected.scores) == settings["max_per_image"] == 300
        assert found.region_ids.equal(expected.rows)
        assert found.columns.equal(expected.classes)
        assert found.scores.equal(expected.scores)

    def test_the_background_column_is_below_a_millionth_where_a_name_is_near(self):
        """What `configs/regionclip_lvis.py` leaves out: its probabilities are these over 1 - p(background)."""
        classes = F.normalize(torch.randn(9, 64), dim=1)
        side = F.normalize(torch.randn(1, 64), dim=1)
        side = F.normalize(side - (side @ classes[:1].T) * classes[:1], dim=1)
        near = 0.14 * classes[:1] + (1 - 0.14**2) ** 0.5 * side
        probabilities = region_logits(near, classes).softmax(dim=1)
        assert probabilities[0, -1] < 1e-6
        without = region_logits(near, classes)[:, :-1].softmax(dim=1)
        torch.testing.assert_close(without * (1 - probabilities[:, -1:]), probabilities[:, :-1])

    def test_vectors_of_another_checkpoint_are_refused(self):
        with pytest.raises(ConfigError, match="features are 8 wide, class embeddings 9"):
            region_logits(torch.zeros(1, 8), torch.zeros(2, 9))

    def test_each_pair_above_the_threshold_unless_a_better_box_of_its_class_overlaps(self):
        boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 90, 90]], dtype=torch.float32)
        probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.1, 0.0, 0.9]])
        found = zero_shot_detections(boxes, probabilities, (50, 60), score_threshold=0.05)
        assert found.rows.tolist() == [0, 1, 2]
        assert found.classes.tolist() == [0, 1, 0]
        torch.testing.assert_close(found.scores, torch.tensor([0.5, 0.35, 0.1]))
        assert found.boxes[2].tolist() == [20, 20, 60, 50]
        assert len(zero_shot_detections(boxes, probabilities, (50, 60), top=1).scores) == 1
        assert len(zero_shot_detections(boxes[:0], probabilities[:0], (50, 60)).scores) == 0
        probabilities[0, 0] = float("nan")
        assert 0 not in zero_shot_detections(boxes, probabilities, (50, 60)).rows.tolist()


class TestFiles:
    def test_safetensors_give_the_same(self, checkpoint, model, tmp_path):
        save_file(torch.load(checkpoint)["model"], tmp_path / "model.safetensors")
        other = RegionClip.from_checkpoint(tmp_path / "model.safetensors", min_size=96, max_size=160)
        for name, tensor in model.state_dict().items():
            assert other.state_dict()[name].equal(tensor)

    @pytest.mark.parametrize("where", ["a tensor's place", "beside the tensors", "no file of torch.save"])
    def test_nothing_but_tensors_is_unpickled(self, oracle, tmp_path, where):
        """Also where harm stands in a part of the file that nobody reads."""

        class Harm:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "harm"),)

        path, tensors = tmp_path / "model.pth", published_names(*oracle)
        if where == "a tensor's place":
            torch.save({"model": tensors | {"backbone.conv1.weight": Harm()}}, path)
        elif where == "beside the tensors":
            torch.save({"model": tensors, "optimizer": Harm()}, path)
        else:
            path.write_bytes(pickle.dumps({"model": Harm()}, protocol=2))
        for read in (RegionClip.from_checkpoint, read_class_embeddings):
            with pytest.raises(EncoderLoadError, match="holds more than tensors.*GLOBAL .*mkdir") as told:
                read(path)
            assert "weights_only" not in str(told.value)  # torch advises to unpickle it all the same
        assert not (tmp_path / "harm").exists()
        pickle.loads(pickle.dumps(Harm()))  # it is harm
        assert (tmp_path / "harm").exists()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            pytest.param(
                "backbone.layer2.0.bn2.running_var", "no tensor backbone.layer2.0.bn2.running_var", id="statistic"
            ),
            pytest.param("backbone.conv2.weight", "no tensor backbone.conv2.weight", id="size"),
            pytest.param("lang_encoder.ln_final.bias", "no tensor lang_encoder.ln_final.bias", id="text"),
        ],
    )
    def test_a_missing_tensor_is_named(self, checkpoint, tmp_path, name, message):
        state = torch.load(checkpoint)["model"]
        del state[name]
        torch.save(state, tmp_path / "model.pth")
        with pytest.raises(EncoderLoadError, match=message):
            RegionClip.from_checkpoint(tmp_path / "model.pth")

    def test_tensors_that_do_not_fit_are_named(self, checkpoint, tmp_path):
        state = torch.load(checkpoint)["model"]
        torch.save(state | {"backbone.bn1.bias": torch.zeros(99)}, tmp_path / "shape.pth")
        with pytest.raises(EncoderLoadError, match="another shape of tensor backbone.bn1.bias"):
            RegionClip.from_checkpoint(tmp_path / "shape.pth")
        torch.save(state | {"backbone.bn1.bias": state["backbone.bn1.bias"] * float("nan")}, tmp_path / "nan.pth")
        with pytest.raises(EncoderLoadError, match="not finite: tensor backbone.bn1.bias"):
            RegionClip.from_checkpoint(tmp_path / "nan.pth")
        torch.save(state | {"backbone.other": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(EncoderLoadError, match="unknown tensor backbone.other"):
            RegionClip.from_checkpoint(tmp_path / "other.pth")

    def test_files_that_are_none(self, tmp_path):
        with pytest.raises(MissingAssetError, match="is not there"):
            RegionClip.from_checkpoint(tmp_path / "absent.pth")
        with pytest.raises(MissingAssetError, match="are not there"):
            read_class_embeddings(tmp_path / "absent.pth")
        (tmp_path / "text.pth").write_text("<html>")
        with pytest.raises(EncoderLoadError, match="text.pth"):
            RegionClip.from_checkpoint(tmp_path / "text.pth")
        (tmp_path / "text.safetensors").write_text("<html>")
        with pytest.raises(EncoderLoadError, match="is damaged"):
            RegionClip.from_checkpoint(tmp_path / "text.safetensors")
        torch.save(torch.zeros(3, 4), tmp_path / "tensor.pth")
        with pytest.raises(EncoderLoadError, match="holds a Tensor; expected a checkpoint"):
            RegionClip.from_checkpoint(tmp_path / "tensor.pth")

    def test_class_embeddings_are_one_tensor(self, tmp_path):
        torch.save(torch.ones(3, 4).half(), tmp_path / "embeddings.pth")
        assert read_class_embeddings(tmp_path / "embeddings.pth").equal(torch.ones(3, 4))
        torch.save(torch.ones(3), tmp_path / "embeddings.pth")
        with pytest.raises(EncoderLoadError, match="must be one tensor"):
            read_class_embeddings(tmp_path / "embeddings.pth")

    def test_sizes_of_photos_are_checked(self, checkpoint):
        with pytest.raises(ConfigError, match="min_size <= max_size"):
            RegionClip.from_checkpoint(checkpoint, min_size=900, max_size=800)


class TestEncoder:
    @pytest.fixture(scope="class")
    def encoder(self, checkpoint):
        return RegionClipEncoder(checkpoint=checkpoint, min_size=96, max_size=160, device="cpu")

    def test_is_a_region_encoder(self, encoder, model):
        assert isinstance(encoder, RegionEncoder)
        assert (encoder.dim, encoder.logit_scale, encoder.missing_assets()) == (DIM, 100, [])
        image, boxes = make_image(60, 80), make_boxes(5, 60, 80)
        expected = F.normalize(model.region_features(image, boxes), dim=1)
        torch.testing.assert_close(encoder.encode_regions(image, boxes), expected, atol=1e-5, rtol=0)
        whole = encoder.encode_regions(image[:, :60], [[0, 0, 60, 60]])
        crop = torch.from_numpy(image[:, :60].copy()).permute(2, 0, 1)[None]
        torch.testing.assert_close(encoder.encode_images(crop), whole, atol=1e-5, rtol=0)
        assert encoder.encode_images(crop[:0]).shape == encoder.encode_texts([]).shape == (0, DIM)

    def test_texts_are_clips_and_cut_ones_keep_their_end(self, encoder, oracle, caplog):
        texts = ["a photo of a cup", "star " * 100, "cup " * 100]
        with caplog.at_level(logging.WARNING), torch.no_grad():
            expected = F.normalize(oracle[1].encode_text(open_clip.get_tokenizer("RN50")(texts)), dim=1)
            found = encoder.encode_texts(texts)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert (found[1] - found[2]).abs().max() > 1e-3
        assert "2 of 3 texts exceed 77 tokens" in caplog.text

    def test_pickles_as_its_arguments(self, encoder):
        assert pickle.loads(pickle.dumps(encoder)).fingerprint == encoder.fingerprint

    def test_missing_and_fine_tuned_files_are_told(self, oracle, tmp_path):
        encoder = RegionClipEncoder(checkpoint=tmp_path / "absent.pth")
        assert "model zoo of github.com/microsoft/RegionCLIP" in encoder.missing_assets()[0]
        with pytest.raises(MissingAssetError, match="absent.pth"):
            encoder.load("cpu")
        torch.save({"model": published_names(oracle[0], None)}, tmp_path / "finetuned.pth")
        with pytest.raises(EncoderLoadError, match="has no text network"):
            RegionClipEncoder(checkpoint=tmp_path / "finetuned.pth").load("cpu")
        with pytest.raises(ConfigError, match="has no text network"):
            RegionClip.from_checkpoint(tmp_path / "finetuned.pth").encode_tokens(
                torch.zeros((1, 77), dtype=torch.int64)
            )


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers in {GOLDEN}; set RAR_GOLDEN")
class TestGolden:
    @pytest.fixture(scope="class")
    def world(self):
        config = json.loads((GOLDEN / "config.json").read_text())
        model = RegionClip.from_checkpoint(
            GOLDEN / "model.safetensors", config["min_size_test"], config["max_size_test"]
        )
        return model, load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "outputs.safetensors")

    @pytest.mark.parametrize("i", [0, 1])
    def test_from_photo_to_detections(self, world, i):
        model, inputs, outputs = world
        image = inputs[f"image_{i}"]
        height, width = image.shape[:2]
        boxes = inputs[f"boxes_xywh_{i}"][inputs[f"kept_{i}"]]
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        assert model.resize(image).equal(inputs[f"resized_{i}"])
        torch.testing.assert_close(model.image_features(image)[0], outputs[f"res4_{i}"], atol=5e-5, rtol=0)
        features = model.region_features(image, boxes)
        torch.testing.assert_close(features, outputs[f"roi_features_{i}"], atol=5e-4, rtol=0)
        logits = region_logits(features, inputs["class_embeddings"])
        torch.testing.assert_close(logits, outputs[f"logits_{i}"], atol=1e-3, rtol=0)
        probabilities = logits.softmax(dim=1)
        torch.testing.assert_close(probabilities, outputs[f"probabilities_{i}"], atol=5e-5, rtol=0)
        new_height, new_width = model.resized_hw((height, width))
        found = zero_shot_detections(
            inputs[f"boxes_resized_{i}"], probabilities, (new_height, new_width), score_threshold=0.001, top=100
        )
        assert found.classes.equal(outputs[f"gt_classes_{i}"])
        assert found.rows.equal(outputs[f"gt_box_index_{i}"])
        torch.testing.assert_close(found.scores, outputs[f"gt_scores_{i}"], atol=5e-5, rtol=0)
        scale = torch.tensor([width / new_width, height / new_height] * 2)
        torch.testing.assert_close(found.boxes * scale, outputs[f"gt_boxes_out_{i}"], atol=1e-3, rtol=0)

    def test_texts(self, world):
        model, inputs, outputs = world
        found = model.encode_tokens(inputs["concept_ids"].flatten(0, 1)).unflatten(0, (5, 4))
        torch.testing.assert_close(found, outputs["text_features"], atol=5e-5, rtol=0)
        torch.testing.assert_close(found.mean(dim=1), outputs["concept_embeddings"], atol=5e-5, rtol=0)

    @pytest.mark.parametrize("size", ["rn50", "rn50x4"])
    def test_networks_have_the_published_names_and_shapes(self, size):
        from rar_mmdet.encoders.regionclip.networks import ImageNetwork, TextNetwork

        shapes = {
            name: tuple(shape) for name, shape in json.loads((GOLDEN / "published_keys.json").read_text())[size].items()
        }
        for prefix, network in (("backbone.", ImageNetwork), ("lang_encoder.", TextNetwork)):
            own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
            with torch.device("meta"):
                built = network(own)
            assert {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()} == own
        assert built.token_embedding.num_embeddings == 49408
