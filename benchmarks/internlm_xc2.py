"""Memory of loading InternLM-XComposer2-VL: peak above the weights, against a plain read of the state dict.

    python benchmarks/internlm_xc2.py --json internlm_xc2.json

A random model of about 100 M parameters in the published layout is written to a temporary folder, as safetensors and
as `.bin` shards, in bfloat16. Each way to load it runs in a fresh process, which reports how far its anonymous memory
(what no file backs) rose at the peak and at the end, sampled every millisecond. 1.0 is the size of the weights, so a
second copy would be 2. The baseline of the same run builds the model, reads the whole state dict into memory and copies
it in, as `load_state_dict` does.

JSON keys: `weights_mb`; per way `peak_over_weights`, `end_over_weights`, `seconds`; `peak_against_baseline`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText
from transformers.initialization import no_init_weights

from rar_mmdet.rankers.internlm_xc2 import IXC2Config, IXC2ForConditionalGeneration

WAYS = ("safetensors", "bin", "baseline")


def config_100m() -> IXC2Config:
    """About 100 M parameters in the proportions of the published model."""
    vision = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    return IXC2Config(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=3,
        plora_rank=64,
        plora_alpha=64,
        img_size=224,
        vision_config={**vision, "image_size": 224, "patch_size": 14},
    )


def write_folders(root: Path) -> int:
    """Both layouts; bytes of the weights."""
    model = IXC2ForConditionalGeneration(config_100m()).to(torch.bfloat16)
    state = {name.replace(".base.", "."): tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(root / "safetensors")
    (root / "bin").mkdir()
    model.config.save_pretrained(root / "bin")
    names, files = sorted(state), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        torch.save({name: state[name] for name in names if weight_map[name] == file}, root / "bin" / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (root / "bin" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return sum(tensor.nbytes for tensor in state.values())


def load_baseline(folder: Path) -> torch.nn.Module:
    """The usual way of own loaders: build, read everything, copy it in."""
    from safetensors.torch import load

    with no_init_weights():
        model = IXC2ForConditionalGeneration(config_100m()).to(torch.bfloat16)
    state = load((folder / "model.safetensors").read_bytes())
    natives = {name.replace(".base.", "."): name for name in model.state_dict()}
    model.load_state_dict({natives[name]: tensor for name, tensor in state.items()})
    return model


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon: this benchmark needs Linux")


def measure(load: Callable[[], torch.nn.Module]) -> dict[str, float]:
    """Rise of anonymous memory at the peak and at the end, and seconds."""
    before, stop = anonymous_bytes(), threading.Event()
    samples = [before]

    def watch() -> None:
        while not stop.is_set():
            samples.append(anonymous_bytes())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    model = load()
    with torch.inference_mode():
        model(input_ids=torch.ones(1, 4, dtype=torch.int64))  # touches every mapped page of the language model
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    return {"peak": max(samples) - before, "end": anonymous_bytes() - before, "seconds": seconds}


def child(way: str, root: Path) -> None:
    """One way in this process, its result as JSON on stdout."""
    if way == "baseline":
        print(json.dumps(measure(lambda: load_baseline(root / "safetensors"))))
    else:
        print(json.dumps(measure(lambda: AutoModelForImageTextToText.from_pretrained(root / way, dtype="bfloat16"))))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "ROOT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return
    with tempfile.TemporaryDirectory() as root:
        size = write_folders(Path(root))
        result: dict[str, object] = {"weights_mb": round(size / 1e6, 1)}
        peaks = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--child", way, root]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            figures = json.loads(output.splitlines()[-1])
            peaks[way] = figures["peak"]
            result[way] = {
                "peak_over_weights": round(figures["peak"] / size, 3),
                "end_over_weights": round(figures["end"] / size, 3),
                "seconds": round(figures["seconds"], 2),
            }
    result["peak_against_baseline"] = {way: round(peaks[way] / peaks["baseline"], 3) for way in WAYS}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
