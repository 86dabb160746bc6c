"""The test command: MMDetection's `tools/test.py` with optional checkpoint, subsets and a check beforehand."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.registry import RUNNERS
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from rar_mmdet import __version__
from rar_mmdet._host import installed_versions
from rar_mmdet.components import find_recognizers
from rar_mmdet.engine import settings
from rar_mmdet.engine.check import check_run
from rar_mmdet.engine.console import QuietRunner
from rar_mmdet.engine.peers import PeerWatch
from rar_mmdet.engine.preflight import box_source, check_config, check_vocabulary, inner_dataset, missing_assets
from rar_mmdet.engine.recognition_hook import RecognitionHook, collect_reports, collect_unreadable, find_branches
from rar_mmdet.engine.record_hook import RegionRecordHook
from rar_mmdet.errors import CheckpointError, ConfigError, MissingAssetError, RarError
from rar_mmdet.files.checkpoints import file_sha256
from rar_mmdet.memory import CategoryMemory
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.terminal import show

__all__ = ["EXIT_STOPPED", "EXIT_USER_ERROR", "load_config", "main", "parse_args"]

EXIT_USER_ERROR = 2
EXIT_STOPPED = 130  # as shells say it of Ctrl-C
_ANSWERS = "ranker_answers.sqlite"
# Processes may finish hours apart when a ranker answers slowly; one that fails is noticed by `PeerWatch`.
_PATIENCE = timedelta(days=2)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """MMDetection's options, and ours."""
    parser = argparse.ArgumentParser(
        description="Test (and score) a config",
        epilog="Writes summary.json (metrics, seconds per image, the recogniser's report) and regions.jsonl (one line "
        "for each region) into the work dir. Exit status 2: something is missing or wrong, and the message says what.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint of the detector; recognition of given boxes has none")
    parser.add_argument("--work-dir", help="where logs and metrics go; default: work_dirs/<name of the config>")
    parser.add_argument("--out", help="dump predictions to this .pkl file")
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", help="save drawn predictions in work_dir/timestamp/SHOW_DIR")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds between shown images")
    parser.add_argument("--num-images", type=int, help="only the first so many images; scores are over these alone")
    parser.add_argument(
        "--check",
        action="store_true",
        help="only look: what is missing, what looks wrong, a few images end to end, and how long the whole run takes",
    )
    parser.add_argument(
        "--max-unreadable",
        type=int,
        default=10,
        help="photos that are missing or damaged and are left without detections, named at the end, in each process "
        "that loads data; one more ends the run (default: %(default)s)",
    )
    parser.add_argument("--results", help="write the detections as FILE.bbox.json, which `rar-mmdet score` reads")
    parser.add_argument("--no-records", action="store_true", help="do not write regions.jsonl")
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help=f"ask the ranker everything anew; by default its answers are kept in WORK_DIR/{_ANSWERS}, and a run that "
        "was stopped goes on where it was",
    )
    parser.add_argument(
        "--budget",
        type=float,
        help="money that a hosted ranker may spend, at its config's prices; the run stops before, and nothing is lost",
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
    if args.max_unreadable < 0:
        parser.error(f"--max-unreadable must be at least 0, got {args.max_unreadable}")
    if args.num_images is not None and args.num_images < 1:
        parser.error(f"--num-images must be at least 1, got {args.num_images}")
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def load_config(args: argparse.Namespace) -> Config:
    """The config file with the command line merged in.

    Raises:
        ConfigError: there is no such file, or a key of --cfg-options goes nowhere.
    """
    if not Path(args.config).is_file():
        raise ConfigError(f"config {args.config} does not exist (looked for in {os.getcwd()})")
    config = Config.fromfile(args.config)
    config.launcher = args.launcher
    if args.cfg_options is not None:
        _merge_options(config, args.cfg_options)
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    if args.checkpoint is not None:
        config.load_from = args.checkpoint
    if args.show or args.show_dir:
        config = trigger_visualization_hook(config, args)
    settings.keep_answers(config.model, None if args.no_cache else f"{config.work_dir}/{_ANSWERS}")
    if args.budget is not None and not settings.limit_cost(config.model, args.budget):
        raise ConfigError(f"--budget {args.budget}: {args.config} has no ranker that asks a server")
    check_config(config)
    if args.tta:
        settings.add_test_time_augmentation(config)
    if args.num_images is not None:
        inner_dataset(config).indices = args.num_images
        for metric in settings.score_seen_images(config):
            _say(f"warning: {metric} cannot score a subset: objects of the other images count as missed")
    settings.allow_unreadable(config, args.max_unreadable)
    if args.results is not None:
        settings.write_results(config, args.results)
    if not args.no_records:
        settings.write_records(config)
    settings.show_progress(config)
    return config


def _merge_options(config: Config, options: dict[str, Any]) -> None:
    """--cfg-options; keys of `test_evaluator` reach every metric of a list."""
    evaluators = config.get("test_evaluator")
    for key, value in options.items():
        name = key.removeprefix("test_evaluator.")
        try:
            if name != key and isinstance(evaluators, list) and not name.split(".")[0].isdigit():
                takers = [index for index, metric in enumerate(evaluators) if name.split(".")[0] in metric] or [0]
                for index in takers:
                    config.merge_from_dict({f"test_evaluator.{index}.{name}": value})
            else:
                config.merge_from_dict({key: value})
        except (KeyError, TypeError, IndexError) as error:
            raise ConfigError(f"--cfg-options {key}={value}: there is no such place in the config ({error})") from error


def main(argv: list[str] | None = None) -> int:
    """Run; the exit status."""
    args = parse_args(argv)
    try:
        run(args)
    except RarError as error:
        _say(_in_one_line(error))
        return EXIT_USER_ERROR
    except KeyError as error:
        if "is not in the" not in str(error):  # how MMEngine's registries say it
            raise
        _say(f"ConfigError: a type of the config is not known: {error.args[0]}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        kept = "" if args.no_cache else "; a ranker's answers are kept, and the same command goes on from them"
        _say(f"stopped{kept}")
        return EXIT_STOPPED
    return 0


def run(args: argparse.Namespace) -> None:
    """Test; writes `summary.json`.

    Raises:
        RarError: something is missing or wrong.
    """
    config = load_config(args)
    missing = missing_assets(config)
    if missing:
        raise MissingAssetError("this config needs what is not there:\n  " + "\n  ".join(missing))
    check_vocabulary(config)
    _join_on_cpu(config)
    runner = _build_runner(config, args.out)
    if args.check:
        for line in check_run(runner):
            show(runner.logger, line)
        return
    start = time.perf_counter()
    with PeerWatch():
        metrics = _test(runner, config)
        summary = _summarise(runner, config, metrics, time.perf_counter() - start)
    if is_main_process():
        path = Path(config.work_dir) / "summary.json"
        path.write_text(json.dumps(summary, indent=2, default=float) + "\n", encoding="utf-8")
        for line in _where_things_are(path, runner, args):
            show(runner.logger, line)
        for why in summary["unreadable"].values():  # last and not only in the log: the numbers count them as missed
            print(f"left out: {why}", file=sys.stderr)


def _join_on_cpu(config: Config) -> None:
    """MMEngine's launchers ask for a GPU; without one, join by gloo before the runner does."""
    if config.launcher == "none":
        return
    if config.launcher == "pytorch" and not torch.cuda.is_available():
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
        config.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
    else:
        environment = config.setdefault("env_cfg", {})
        environment.setdefault("dist_cfg", {}).setdefault("timeout", int(_PATIENCE.total_seconds()))


def _build_runner(config: Config, out: str | None) -> Runner:
    """The runner, with the metric that dumps predictions if asked."""
    runner = QuietRunner.from_cfg(config) if "runner_type" not in config else RUNNERS.build(config)
    if out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
    return runner


def _test(runner: Runner, config: Config) -> dict[str, Any]:
    try:
        return runner.test()
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {config.get('load_from')} is refused by torch.load: {str(error).splitlines()[0]} Only tensors "
            "and the classes that MMEngine's Runner saves are unpickled, since a pickle can run any code. If you trust "
            "the file, load it once with torch.load(path, weights_only=False) and save its 'state_dict' alone"
        ) from error


def _summarise(runner: Runner, config: Config, metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What `summary.json` holds; called in every process."""
    report = collect_reports(runner.model)
    timing = next((hook.seconds_per_image for hook in runner.hooks if isinstance(hook, RecognitionHook)), None)
    num_images = len(runner.test_dataloader.dataset)
    return {
        "config": config.filename,
        "checkpoint": config.get("load_from"),
        "num_images": num_images,
        "first_images_only": inner_dataset(config).get("indices"),
        "num_processes": runner.world_size,
        "seconds": seconds,
        "seconds_per_image": timing if timing is not None else seconds / max(num_images, 1),
        "metrics": metrics,
        "report": report,
        "unreadable": {str(image): why for image, why in collect_unreadable(runner.model).items()},
        "protocol": {**_protocol(config), "used": [_used(branch.recognizer) for branch in find_branches(runner.model)]},
    }


def _protocol(config: Config) -> dict[str, Any]:
    """What the numbers belong to: boxes, parts with their settings, annotations by their hash, versions, device."""
    evaluators = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    files = [Path(str(one["ann_file"])) for one in evaluators if one.get("ann_file")]
    protocol = {
        "boxes": box_source(config),
        "recognizers": dict(find_recognizers(config.model)),
        "evaluators": evaluators,
        "annotations_sha256": {str(file): file_sha256(file) for file in files if file.is_file()},
        "versions": {"rar_mmdet": __version__, **installed_versions()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}",
    }
    return json.loads(json.dumps(protocol, default=str))


def _used(recognizer: RegionRecognizer) -> dict[str, Any]:
    """What a recogniser used where its config is silent: emission, fusion, and the temperature of its softmax."""
    used: dict[str, Any] = {"emission": repr(recognizer.emission)}
    if recognizer.ranker is not None:
        used |= {"fusion": repr(recognizer.fusion), "num_candidates": recognizer.num_candidates}
    if recognizer.counts["regions"] and isinstance(recognizer.memory, CategoryMemory):
        used["temperature"] = 1 / recognizer.memory.scale
    return used


def _where_things_are(summary: Path, runner: Runner, args: argparse.Namespace) -> list[str]:
    """The last lines of a run."""
    lines = [f"metrics and report: {summary}"]
    lines += [f"regions, one a line: {hook.path}" for hook in runner.hooks if isinstance(hook, RegionRecordHook)]
    if args.show_dir:
        lines.append(f"pictures: {Path(runner.log_dir) / args.show_dir}")
    if args.results:
        lines.append(f"detections: {args.results}")
    if args.out:
        lines.append(f"predictions: {args.out}")
    if args.num_images is not None:
        lines.append(f"these numbers are of the first {args.num_images} images alone")
    return lines


def _in_one_line(error: RarError) -> str:
    """Type and message; of an error in a data-loader worker without the worker's traceback."""
    name, text = type(error).__name__, str(error)
    if "Original Traceback" in text and f"{name}: " in text:
        text = text.rsplit(f"{name}: ", 1)[1].strip()
    return f"{name}: {text}"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
