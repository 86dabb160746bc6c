"""Tiny stand-ins for what the configs name and a test cannot have: data, published weights, a server. Classes stay.

Encoders and rankers are the configs' own classes on random models of the same kind; croppers, memories, fusion,
emission, selection, pipelines and metrics are untouched.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet

TESTS = Path(__file__).parent
# What a published ranker is replaced by, by a part of its name.
FAMILIES = {"llava": "llava", "Qwen2.5": "qwen2_5_vl", "InternVL3": "internvl", "internlm": "internvl"}


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
