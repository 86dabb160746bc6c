"""What a row needs to have run: the commands, where their result lies, and what is missing to run them here.

A job that is done is read and never run again; one that was stopped goes on where its command does (answers of rankers,
vectors and records are kept).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rar_mmdet.components import find_recognizers, read_config
from rar_mmdet.errors import ConfigError, RarError
from rar_mmdet.report.runs import read_object, read_summary

__all__ = ["Command", "GivenJob", "Job", "Launch", "Look", "TestJob", "launch", "look", "run_jobs"]

LOG = "table.log"  # what a command printed, in its folder


@dataclass(frozen=True)
class Command:
    """A module that runs by `python -m`, or a script, and its arguments."""

    program: str  # a script ends in .py
    argv: tuple[str, ...]
    processes: int = 1  # one for each GPU; more than one by torch's launcher, for programs that know --launcher

    @property
    def words(self) -> list[str]:
        """To start it in a process of its own."""
        program = [self.program] if self.program.endswith(".py") else ["-m", self.program]
        if self.processes == 1:
            return [sys.executable, *program, *self.argv]
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        return [sys.executable, *several, *program, *self.argv, "--launcher", "pytorch"]

    def __str__(self) -> str:
        return shlex.join(["python", *self.words[1:]])


Launch = Callable[[Command, Path], int]


def launch(command: Command, log: Path) -> int:
    """Run it in a process of its own, so that each row starts with all of the memory; its exit status.

    What it prints goes to `log`; bars, warnings and errors to the terminal.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as stream:
        return subprocess.run(command.words, stdout=stream, check=False).returncode


class Job(Protocol):
    """See the module."""

    @property
    def name(self) -> str:
        """For messages; two jobs of one name are one."""
        ...

    @property
    def folder(self) -> Path:
        """Where it writes."""
        ...

    @property
    def needs_gpu(self) -> bool:
        """Whether it is of no use without one."""
        ...

    def commands(self) -> Sequence[Command]:
        """To be run one after the other."""
        ...

    def result(self) -> Mapping[str, Any] | None:
        """What it found; `None` where it has not run to the end.

        Raises:
            RarError: its folder holds another run.
        """
        ...

    def missing(self) -> list[str]:
        """One line for each thing that it needs and that is not here; cheap.

        Raises:
            RarError: the same, or a config is wrong.
        """
        ...


@dataclass(frozen=True)
class Look:
    """How a job stands."""

    result: Mapping[str, Any] | None
    problems: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Its result is there."""
        return self.result is not None

    @property
    def can_run(self) -> bool:
        """It is not done, and nothing is missing."""
        return not self.is_done and not self.problems


def look(job: Job, *, on_cpu: bool = False) -> Look:
    """How a job stands, without running anything.

    Args:
        job: the job.
        on_cpu: run jobs that want a GPU without one too.
    """
    try:
        result = job.result()
        if result is not None:
            return Look(result)
        problems = list(job.missing())
    except RarError as error:
        return Look(None, (str(error),))
    if job.needs_gpu and not on_cpu and not torch.cuda.is_available():
        problems.append("a GPU: none is here; --on-cpu runs the row all the same, for hours or days")
    return Look(None, tuple(problems))


def run_jobs(
    jobs: Sequence[Job], *, on_cpu: bool = False, start: Launch = launch, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Look]:
    """Run what is not done and can run; how each job stands then, by name. A job that fails does not stop the others.

    Args:
        jobs: in the order to run them.
        on_cpu: see `look`.
        start: runs a command.
        tell: is told what is run.
    """
    different = list({job.name: job for job in jobs}.values())
    looks = {job.name: look(job, on_cpu=on_cpu) for job in different}
    waiting = [job for job in different if looks[job.name].can_run]
    for number, job in enumerate(waiting, 1):
        log = job.folder / LOG
        for command in job.commands():
            tell(f"[{number}/{len(waiting)}] {job.name}: {command}")
            if status := start(command, log):
                why = f"{job.name} ended with status {status}; it said why above or in {log}"
                looks[job.name] = Look(None, (why,))
                break
        else:
            seen = look(job, on_cpu=on_cpu)
            looks[job.name] = seen if seen.is_done else Look(None, (f"{job.name} wrote no result; see {log}",))
    return looks


@dataclass(frozen=True)
class TestJob:
    """A test of a config with boxes, as tools/test.py runs it; a run that was made by hand in `folder` counts.

    Args:
        config: the file.
        folder: its work dir.
        needs_gpu: whether it is of no use without a GPU.
        num_images: only the first so many images.
        gpus: processes, one for each GPU.
    """

    config: Path
    folder: Path
    needs_gpu: bool = False
    num_images: int | None = None
    gpus: int = 1

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def _argv(self) -> tuple[str, ...]:
        subset = () if self.num_images is None else ("--num-images", str(self.num_images))
        return (str(self.config), "--work-dir", str(self.folder), *subset)

    def commands(self) -> list[Command]:
        """The test."""
        return [Command("rar_mmdet.engine", self._argv, self.gpus)]

    def result(self) -> Mapping[str, Any] | None:
        """Its summary.json.

        Raises:
            ConfigError: of other settings or another number of images.
        """
        summary = read_summary(self.folder)
        if "num_images" not in summary:
            return None
        config = read_config(self.config)
        wanted, found = _settings(dict(find_recognizers(config["model"]))), _settings(_recognizers(summary))
        other = sorted(key for key in {**wanted, **found} if wanted.get(key) != found.get(key))
        if summary.get("first_images_only") != self.num_images:
            other.append(f"{summary.get('num_images')} images")
        if other:
            raise ConfigError(
                f"{self.folder} holds a run of {self.config.name} with other settings ({', '.join(other)}); remove the "
                "folder, or give another --work-dirs"
            )
        return summary

    def missing(self) -> list[str]:
        """As the test itself would say it.

        Raises:
            HostError: MMDetection cannot be used here.
        """
        from rar_mmdet.engine import missing_assets
        from rar_mmdet.engine.command import load_config, parse_args

        return missing_assets(load_config(parse_args(list(self._argv))))


@dataclass(frozen=True)
class GivenJob:
    """Numbers that the user has: nothing is run.

    Args:
        name: of the row.
        folder: folder of a run of tools/test.py, or a file of `rar-mmdet score ... --json FILE`.
    """

    name: str
    folder: Path

    @property
    def needs_gpu(self) -> bool:
        """It runs nothing."""
        return False

    def commands(self) -> list[Command]:
        """None."""
        return []

    def result(self) -> Mapping[str, Any] | None:
        """As a summary.

        Raises:
            RecordFileError: the file is not one JSON object.
        """
        if self.folder.is_dir():
            return read_summary(self.folder) or None
        return {"metrics": read_object(self.folder)} if self.folder.is_file() else None

    def missing(self) -> list[str]:
        """The numbers."""
        what = "a folder with summary.json, or a file of `rar-mmdet score RESULTS ANNOTATIONS --json FILE`"
        return [f"{self.folder} holds no numbers: give {what}"]


def _recognizers(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    found = summary.get("protocol", {}).get("recognizers", {})
    return found if isinstance(found, Mapping) else {}


def _settings(recognizers: Mapping[str, Any]) -> dict[str, Any]:
    """Part -> settings, as JSON has them; without where a ranker's answers are kept."""
    parts: dict[str, Any] = {}
    for where, recognizer in recognizers.items():
        for part, settings in json.loads(json.dumps(recognizer, default=str)).items():
            if isinstance(settings, dict):
                settings.pop("cache", None)
            if settings is not None:
                parts[f"{where}.{part}"] = settings
    return parts
