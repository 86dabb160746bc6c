"""Test (and score) a config: MMDetection's `tools/test.py` with optional checkpoint, subsets and a check beforehand.

    python tools/test.py CONFIG [CHECKPOINT] [--work-dir DIR] [--num-images N] [--show-dir DIR] [--cfg-options K=V ...]

Writes `summary.json` into the work dir: metrics, seconds per image and the recogniser's report.
Exit status 2: something the config needs is missing or wrong; the message says what.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.registry import RUNNERS
from mmengine import ConfigDict
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from rar_mmdet.components import asks_a_model
from rar_mmdet.errors import ConfigError, RarError
from rar_mmdet.models import RecognitionHook, collect_reports, missing_assets

EXIT_USER_ERROR = 2


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """MMDetection's options, and ours."""
    parser = argparse.ArgumentParser(description="Test (and score) a config")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint of the detector; recognition of given boxes has none")
    parser.add_argument("--work-dir", help="where logs and metrics go; default: work_dirs/<name of the config>")
    parser.add_argument("--out", help="dump predictions to this .pkl file")
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", help="save drawn predictions in work_dir/timestamp/SHOW_DIR")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds between shown images")
    parser.add_argument("--num-images", type=int, help="only the first so many images; scores are over these alone")
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="ask the ranker everything anew; by default its answers are kept in WORK_DIR/ranker_answers.sqlite, and a "
        "run that was stopped goes on where it was",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="override config keys: key=value, nested a.b=value"
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation; by default a horizontal flip")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by launchers")
    args = parser.parse_args(argv)
    if args.out is not None and not args.out.endswith((".pkl", ".pickle")):
        parser.error(f"--out must end in .pkl or .pickle, got {args.out}")
    if args.num_images is not None and args.num_images < 1:
        parser.error(f"--num-images must be at least 1, got {args.num_images}")
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def load_config(args: argparse.Namespace) -> Config:
    """The config file with the command line merged in."""
    config = Config.fromfile(args.config)
    config.launcher = args.launcher
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    if args.checkpoint is not None:
        config.load_from = args.checkpoint
    if args.show or args.show_dir:
        config = trigger_visualization_hook(config, args)
    if args.tta:
        add_test_time_augmentation(config)
    if args.num_images is not None:
        inner_dataset(config).indices = args.num_images
    keep_answers(config.model, None if args.no_cache else f"{config.work_dir}/ranker_answers.sqlite")
    return config


def keep_answers(model: Any, path: str | None) -> None:
    """Give every ranker that asks a model its file of answers; one named in the config stays, unless `path` is None."""
    for key, value in model.items() if isinstance(model, dict) else ():
        keep_answers(value, path)
        if key == "ranker" and asks_a_model(value) and (path is None or "cache" not in value):
            value.cache = path


def inner_dataset(config: Config) -> ConfigDict:
    """The test dataset below its wrappers."""
    dataset = config.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def add_test_time_augmentation(config: Config) -> None:
    """As MMDetection's tool does, but keeping the config's own packing step and number of detections."""
    if "tta_model" not in config:
        config.tta_model = {
            "type": "rar_mmdet.RecognitionTTAModel",
            "tta_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 300},
        }
    if "tta_pipeline" not in config:
        pipeline = deepcopy(inner_dataset(config).pipeline)
        flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
        config.tta_pipeline = [*pipeline[:-1], {"type": "TestTimeAug", "transforms": [flips, [pipeline[-1]]]}]
    config.model = ConfigDict(**config.tta_model, module=config.model)
    inner_dataset(config).pipeline = config.tta_pipeline


def start_processes_on_cpu(config: Config) -> None:
    """MMEngine's launchers ask for a GPU; without one, join by gloo before the runner does."""
    if config.launcher != "pytorch" or torch.cuda.is_available():
        return
    torch.distributed.init_process_group("gloo")
    config.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}


def find_problems(config: Config) -> str | None:
    """A few lines about what is missing, or `None`."""
    lines = missing_assets(config)
    return "this config needs what is not there:\n  " + "\n  ".join(lines) if lines else None


def build_runner(config: Config, out: str | None) -> Runner:
    """The runner, with the metric that dumps predictions if asked."""
    runner = Runner.from_cfg(config) if "runner_type" not in config else RUNNERS.build(config)
    if out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
    return runner


def summarise(runner: Runner, config: Config, metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What `summary.json` holds; called in every process."""
    report = collect_reports(runner.model)
    timing = next((hook.seconds_per_image for hook in runner.hooks if isinstance(hook, RecognitionHook)), None)
    num_images = len(runner.test_dataloader.dataset)
    return {
        "config": config.filename,
        "checkpoint": config.get("load_from"),
        "num_images": num_images,
        "num_processes": runner.world_size,
        "seconds": seconds,
        "seconds_per_image": timing if timing is not None else seconds / max(num_images, 1),
        "metrics": metrics,
        "report": report,
    }


def main(argv: list[str] | None = None) -> int:
    """Run; the exit status."""
    args = parse_args(argv)
    try:
        if not Path(args.config).is_file():
            raise ConfigError(f"config {args.config} does not exist (looked for in {os.getcwd()})")
        config = load_config(args)
        problems = find_problems(config)
        if problems:
            print(problems, file=sys.stderr)
            return EXIT_USER_ERROR
        start_processes_on_cpu(config)
        runner = build_runner(config, args.out)
        start = time.perf_counter()
        metrics = runner.test()
        summary = summarise(runner, config, metrics, time.perf_counter() - start)
    except RarError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if is_main_process():
        path = Path(config.work_dir) / "summary.json"
        path.write_text(json.dumps(summary, indent=2, default=float) + "\n")
        runner.logger.info(f"metrics and report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
