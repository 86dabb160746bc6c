"""Tiny stand-ins for what the configs name and a test cannot have: data, published weights, a server. Classes stay.

Encoders and rankers are the configs' own classes on random models of the same kind; croppers, memories, fusion,
emission, selection, pipelines and metrics are untouched.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet

from rar_mmdet.components import find_recognizers

TESTS = Path(__file__).parent
# What a published ranker is replaced by, by a part of its name.
FAMILIES = {"llava": "llava", "Qwen2.5": "qwen2_5_vl", "InternVL3": "internvl", "internlm": "internvl"}
# Detectors by hub id -> the kind of tiny model that stands in for them.
DETECTORS = {
    "iSEE-Laboratory/llmdet_tiny": "mm-grounding-dino",
    "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit": "mm-grounding-dino",
    "google/owlv2-base-patch16-ensemble": "owlv2",
    "ustc-community/dfine-large-coco": "d_fine",
    "PekingU/rtdetr_r50vd_coco_o365": "rt_detr",
}
NUM_NAMES = 12  # of the world of `write_lvis_world`


def _helper(path: str) -> ModuleType:
    """A module of another test folder."""
    name = f"helper_{path.replace('/', '_').removesuffix('.py')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def clip_folder(root: Path, image_size: int) -> Path:
    """A random open_clip model, written once."""
    folder = root / f"clip_{image_size}"
    if not folder.is_dir():
        _helper("encoders/tiny.py").write_model(folder, image_size=image_size)
    return folder


def regionclip_file(root: Path) -> Path:
    """A random RegionCLIP checkpoint with the names of the published ones, written once."""
    file = root / "regionclip.pth"
    if not file.is_file():
        torch.manual_seed(0)
        resnet = ModifiedResNet([1, 2, 1, 2], 24, heads=4, image_size=32 * 7, width=8)
        text_cfg = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
        vision_cfg = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
        text = open_clip.CLIP(embed_dim=24, vision_cfg=vision_cfg, text_cfg=text_cfg, quick_gelu=True)
        names = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
        state = {f"backbone.{k}": v for k, v in resnet.state_dict().items() if not k.endswith("num_batches_tracked")}
        state |= {f"lang_encoder.{k}": v for k, v in text.state_dict().items() if k.startswith(names)}
        torch.save({"model": {name: tensor.clone() for name, tensor in state.items()}}, file)
    return file


def ranker_folder(root: Path, model: str) -> Path:
    """A random model of the named one's family, written once."""
    family = next(family for part, family in FAMILIES.items() if part in model)
    folder = root / family
    if not folder.is_dir():
        _helper("rankers/conftest.py").save_tiny_model(family, folder)
    return folder


def fgclip2_folder(root: Path) -> Path:
    """A random FG-CLIP 2 in the published layout, written once."""
    folder = root / "fgclip2"
    if not folder.is_dir():
        _helper("encoders/fgclip2_world.py").write_folder(folder)
    return folder


def recognizer_of(config):
    ((_, settings),) = find_recognizers(config.model)
    return settings


def on_tiny_world(config, ann_file):
    """The config with data and image sizes that a CPU can have in a second."""
    dataset = config.test_dataloader.dataset
    dataset.data_root, dataset.ann_file = str(ann_file.parents[1]), str(ann_file)
    dataset.data_prefix = {"img": ""}
    side = 320 if "dino" in config.filename else 96  # DINO wants as many pixels as it has queries
    for transform in dataset.pipeline:
        if transform.type == "Resize":
            transform.scale = (side, side)
        if transform.type == "Pad":
            transform.size = (96, 96)
    for metric in config.test_evaluator:
        metric.ann_file = str(ann_file)
    recognizer_of(config).vocabulary = str(ann_file)
    if "mask_head" in config.model.get("roi_head", {}):
        config.model.roi_head.mask_head.num_classes = NUM_NAMES  # its masks are those of the vocabulary
    return config


def on_tiny_models(config, root, server):
    """Published weights by random ones of the same kind; those that ship with the project stay."""
    recognizer = recognizer_of(config)
    encoder, ranker = recognizer.encoder, recognizer.get("ranker")
    if encoder.type == "RegionClipEncoder":
        encoder.checkpoint = str(regionclip_file(root))
    elif encoder.type == "FGCLIP2RegionEncoder":
        encoder.model = str(fgclip2_folder(root))
    elif encoder.get("pretrained"):
        del encoder["pretrained"]
        encoder.model = f"local-dir:{clip_folder(root, recognizer.cropper.get('size', 32))}"
    detector = config.model.get("detector")
    if isinstance(detector, dict) and detector.get("model") in DETECTORS:
        kind = DETECTORS[detector.model]
        detector.model, detector.score_threshold = str(root / kind), 0.0
        if detector.get("names"):  # the vocabulary, as everywhere in the tiny world
            detector["names"] = recognizer.vocabulary
        if not (root / kind).is_dir():
            _helper("detectors/tiny_detectors.py").write_detector(root / kind, kind)
    if ranker and "base_url" in ranker:
        ranker.base_url = server.url
        if key := ranker.get("server", {}).get("api_key_env"):
            os.environ[key] = "no-key"  # of the loopback server
    elif ranker and not Path(ranker.model).is_dir():
        ranker.model = str(ranker_folder(root, ranker.model))
    return config


class LetterServer:
    """A server that answers B, with log-probabilities of five letters; and decisions, by what is in the photo."""

    def __init__(self) -> None:
        http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        self.close = http.shutdown
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing: a test prints nothing."""

    def _send(self, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "Qwen/Qwen2.5-VL-7B-Instruct"}]})

    def _decide(self, body: dict[str, Any]) -> None:
        weight = (
            1 + len(body["state"][0]["image_url"]["url"]) % 7 + sum(body["state"][0]["image_url"]["url"].encode()) % 5
        )
        answers = {}
        for name, question in body["questions"].items():
            odds = [1 + weight * i for i in range(len(question["criteria"]))]
            shares = {option: value / sum(odds) for option, value in zip(question["criteria"], odds, strict=True)}
            answers[name] = {"type": "choice", "probabilities": shares}
        self._send({"model": "m", "answers": answers, "usage": {"input_tokens": 100, "output_tokens": 0}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "state" in body:  # a decision server of the System One form
            self._decide(body)
            return
        letters = [{"token": letter, "logprob": -0.5 - i} for i, letter in enumerate("BACDE")]
        logprobs = {"content": [{**letters[0], "top_logprobs": letters}]}
        message = {"role": "assistant", "content": "B"}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": logprobs}
        self._send({"id": "x", "object": "chat.completion", "choices": [choice]})
