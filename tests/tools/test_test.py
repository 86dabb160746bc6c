"""tools/test.py end to end on a tiny world: in one process and in two, beside MMDetection's own tool."""

import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner
from ports import closed_port, free_port

from rar_mmdet.engine.command import load_config, parse_args
from rar_mmdet.engine.settings import keep_answers
from rar_mmdet.models.testing import fake_recognizer, write_lvis_world
from rar_mmdet.records import read_records

ROOT = Path(__file__).parents[2]
STOCK_TOOL = Path(mmdet.__path__[0]) / ".mim" / "tools" / "test.py"


def load_tool(path):
    spec = importlib.util.spec_from_file_location(f"tool_{abs(hash(path))}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool():
    return load_tool(ROOT / "tools" / "test.py")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path_factory.getbasetemp() / "rar_cache"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.chdir(tmp_path)


def write_config(root, base, recognizer_at, **changes):
    """A config on the tiny world with fakes; returns its path."""
    ann_file = write_lvis_world(root)
    config = Config.fromfile(ROOT / "configs" / base)
    config.merge_from_dict(
        {
            "test_dataloader.num_workers": 0,
            "test_dataloader.batch_size": 2,
            "test_dataloader.dataset.data_root": str(root),
            "test_dataloader.dataset.ann_file": str(ann_file),
            "default_hooks.logger.interval": 1,
            "how_to_get": ["the world: make it"],
            **changes,
        }
    )
    for metric in config.test_evaluator:
        metric.ann_file = str(ann_file)
    for transform in config.test_dataloader.dataset.pipeline:
        if transform.type == "Resize":
            transform.scale = (96, 96)
    holder = config.model.roi_head if recognizer_at == "roi_head" else config.model
    holder.pop("recognizer")
    holder.recognizer = fake_recognizer(str(ann_file))
    path = root / f"{Path(base).stem}.py"
    config.dump(str(path))
    return path


@pytest.fixture
def boxes_config(tmp_path):
    return write_config(tmp_path / "world", "demo/clip_demo.py", "model")


@pytest.fixture
def detector_config(tmp_path):
    changes = {"model.test_cfg.rpn.max_per_img": 8}
    return write_config(tmp_path / "world", "detectors/clip_faster-rcnn_demo.py", "roi_head", **changes)


@pytest.fixture
def detector_weights(detector_config, tmp_path):
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": MODELS.build(Config.fromfile(detector_config).model).state_dict()}, path)
    return path


def run(tool, *argv):
    return tool.main([str(a) for a in argv])


def summary(work_dir):
    return json.loads((Path(work_dir) / "summary.json").read_text())


def test_given_boxes_without_a_checkpoint(tool, boxes_config):
    assert run(tool, boxes_config, "--work-dir", "out", "--out", "dump.pkl", "--show-dir", "drawn") == 0
    found = summary("out")
    assert found["num_images"] == 5
    assert found["checkpoint"] is None
    assert 0 < found["metrics"]["lvis/bbox_AP"] <= 1
    assert found["metrics"]["recognition/objects"] == 12
    assert found["report"] | {"ranker": None} == {"images": 5, "regions": 12, "ranker": None}
    assert found["report"]["ranker"]["asked"] == 12
    assert found["seconds_per_image"] > 0
    dumped = pickle.loads(Path("dump.pkl").read_bytes())
    assert [sample["img_id"] for sample in dumped] == [1, 2, 3, 4, 5]
    assert not any("ori_img" in sample for sample in dumped)
    assert len(list(Path("out").rglob("drawn/*.png"))) == 5
    assert found["first_images_only"] is None
    assert len(list(read_records("out/regions.jsonl"))) == 12
    log = next(Path("out").rglob("*.log")).read_text()
    pictures = next(line for line in log.splitlines() if "pictures: " in line).split("pictures: ")[1]
    assert len(list(Path(pictures).glob("*.png"))) == 5


def test_a_subset_is_scored_over_itself(tool, boxes_config):
    assert run(tool, boxes_config, "--work-dir", "all") == 0
    assert run(tool, boxes_config, "--work-dir", "some", "--num-images", "3") == 0
    assert summary("some")["num_images"] == 3
    assert summary("some")["metrics"]["recognition/objects"] == 6
    # Two thirds of the images are not in the subset; scored over all images its AP could not come near.
    assert summary("some")["metrics"]["lvis/bbox_AP"] > 0.5 * summary("all")["metrics"]["lvis/bbox_AP"]


def test_options_of_metrics_reach_each_of_them(boxes_config):
    """As MMDetection's documents write it, though these configs have a list of metrics."""
    config = load_config(parse_args([str(boxes_config), "--cfg-options", "test_evaluator.metric=proposal_fast"]))
    assert [metric.get("metric") for metric in config.test_evaluator] == ["proposal_fast", None]
    ann_file = config.test_evaluator[0].ann_file
    config = load_config(parse_args([str(boxes_config), "--cfg-options", f"test_evaluator.ann_file={ann_file}x"]))
    assert [metric.ann_file for metric in config.test_evaluator] == [f"{ann_file}x"] * 2


def test_a_subset_is_marked(boxes_config, capsys):
    config = Config.fromfile(boxes_config)
    config.test_evaluator.append({"type": "CocoMetric", "ann_file": config.test_evaluator[0].ann_file})
    config.dump(str(boxes_config))
    loaded = load_config(parse_args([str(boxes_config), "--num-images", "2"]))
    assert [metric.get("img_ids") for metric in loaded.test_evaluator] == ["seen", None, None]
    assert "warning: CocoMetric cannot score a subset" in capsys.readouterr().err


def test_records_can_be_left_out(tool, boxes_config):
    assert run(tool, boxes_config, "--work-dir", "out", "--no-records") == 0
    assert not Path("out/regions.jsonl").exists()


def test_a_stop_takes_one_line(tool, boxes_config, monkeypatch, capsys):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "test", stop)
    assert run(tool, boxes_config, "--work-dir", "out") == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        "stopped; a ranker's answers are kept, and the same command goes on from them"
    )


def test_stock_metrics_agree(tool, boxes_config, monkeypatch):
    """The same run through MMDetection's LVISMetric and CocoMetric."""
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 wants it; for this test's stock metric alone
    config = Config.fromfile(boxes_config)
    ann_file = config.test_evaluator[0].ann_file
    config.test_evaluator += [
        {"type": "LVISMetric", "ann_file": ann_file, "prefix": "stock_lvis"},
        {"type": "CocoMetric", "ann_file": ann_file, "prefix": "stock_coco"},
        {"type": "rar_mmdet.SparseCocoMetric", "ann_file": ann_file, "digits": None},
    ]
    config.dump(str(boxes_config))
    assert run(tool, boxes_config, "--work-dir", "out") == 0
    metrics = summary("out")["metrics"]
    for ours, theirs in (("lvis/bbox_AP", "stock_lvis/bbox_AP"), ("coco/bbox_mAP", "stock_coco/bbox_mAP")):
        assert metrics[theirs] == pytest.approx(metrics[ours], abs=6e-4)  # theirs are rounded to three digits


def test_stock_tool_runs_a_two_stage_config_unchanged(tool, detector_config, detector_weights, monkeypatch):
    assert run(tool, detector_config, detector_weights, "--work-dir", "ours") == 0
    stock = load_tool(STOCK_TOOL)
    monkeypatch.setattr(sys, "argv", ["test.py", str(detector_config), str(detector_weights), "--work-dir", "stock"])
    stock.main()
    (scalars,) = Path("stock").rglob("2*.json")
    theirs = json.loads(scalars.read_text().splitlines()[-1])
    ours = summary("ours")["metrics"]
    assert ours["lvis/bbox_AP"] > -1
    assert {key: theirs[key] for key in ours} == pytest.approx(ours)


def test_flip_augmentation(tool, detector_config, detector_weights):
    assert run(tool, detector_config, detector_weights, "--work-dir", "tta", "--tta", "--num-images", "2") == 0
    assert summary("tta")["report"]["images"] == 4  # two images, each as it is and mirrored


class TestTwoProcesses:
    """tools/dist_test.sh on the CPU."""

    @staticmethod
    def run(*argv):
        environment = os.environ | {"PYTHON": sys.executable, "PORT": free_port(), "OMP_NUM_THREADS": "1"}
        command = ["bash", str(ROOT / "tools" / "dist_test.sh"), *(str(a) for a in argv)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)

    def test_they_give_what_one_gives(self, tool, boxes_config):
        assert run(tool, boxes_config, "--work-dir", "one") == 0
        done = self.run(boxes_config, "none", "2", "--work-dir", "two")
        assert done.returncode == 0, done.stderr[-3000:]
        one, two = summary("one"), summary("two")
        assert two["num_processes"] == 2
        assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-9)
        assert two["report"] == one["report"]  # every image once, though 5 do not divide by 2
        assert Path("two/regions.jsonl").read_text() == Path("one/regions.jsonl").read_text()
        assert not list(Path("two").glob("regions.rank*"))

    def test_one_of_them_has_no_image(self, tool, boxes_config):
        """The ranker's verdict and the metrics are collectives, which that process has to reach as well."""
        assert run(tool, boxes_config, "--work-dir", "one", "--num-images", "1") == 0
        done = self.run(boxes_config, "none", "2", "--work-dir", "two", "--num-images", "1")
        assert done.returncode == 0, done.stderr[-3000:]
        one, two = summary("one"), summary("two")
        assert one["report"]["ranker"]["asked"] == two["report"]["ranker"]["asked"] == 3
        assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-9)

    def test_one_of_them_fails(self, boxes_config):
        (boxes_config.parent / "val2017" / "000003.png").write_bytes(b"")
        done = self.run(boxes_config, "none", "2", "--work-dir", "two", "--max-unreadable", "0")
        assert done.returncode != 0
        assert "ImageReadError: image 4" in done.stderr
        assert not Path("two/summary.json").exists()


@pytest.fixture
def serve():
    """Starts chat servers on this machine that prefer the longest name, and stops them."""
    loopback, servers = load_tool(ROOT / "tests" / "rankers" / "loopback.py"), []

    def start(**settings):
        servers.append(loopback.Server(models=("m",), **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def asking_servers(boxes_config, *urls):
    """The config with a ranker behind servers."""
    config = Config.fromfile(boxes_config)
    config.model.recognizer.ranker = {"type": "OpenAIRanker", "base_url": list(urls), "model": "m", "image_size": 32}
    config.dump(str(boxes_config))
    return boxes_config


class TestServers:
    """Several processes, several servers, some of which go away."""

    def test_two_processes_share_two_servers_of_which_one_dies(self, tool, boxes_config, serve):
        config = asking_servers(boxes_config, serve().url)
        assert run(tool, config, "--work-dir", "one") == 0

        def breaks_off(number, body):
            """After the fourth answer; the first question of a process that comes late is answered all the same."""
            is_probe = "Answer with the letter A." in body["messages"][0]["content"][1]["text"]
            return ("half", None) if number > 4 and not is_probe else None

        lasting, dying = serve(), serve(script=breaks_off)
        config = asking_servers(boxes_config, dying.url, lasting.url)  # who has nothing on the way asks the first
        done = TestTwoProcesses.run(config, "none", "2", "--work-dir", "two")
        assert done.returncode == 0, done.stderr[-3000:]
        one, two = summary("one"), summary("two")
        assert two["num_processes"] == 2
        assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-9)
        counts = [{name: s["report"]["ranker"][name] for name in ("asked", "ok", "fallback")} for s in (one, two)]
        assert counts[0] == counts[1]
        assert counts[1]["ok"] == counts[1]["asked"] > 8
        assert min(len(lasting.bodies), len(dying.bodies)) > 4
        assert len(list(Path("two").glob("ranker_answers.*.sqlite"))) == 1  # one machine, one file of answers

    def test_a_hosted_one_tells_its_cost_keeps_a_budget_and_loses_nothing(
        self, tool, boxes_config, serve, monkeypatch, capfd, caplog
    ):
        """0.001 a question, of which the first is no crop's; the key stands in no file and no line."""
        monkeypatch.setenv("RAR_TEST_KEY", "sk-very-secret")
        server = serve()
        plain = server.completion
        server.completion = lambda body, choices=1: {**plain(body, choices), "usage": {"prompt_tokens": 1000}}
        config = Config.fromfile(asking_servers(boxes_config, server.url))
        config.model.recognizer.ranker.server = {"api_key_env": "RAR_TEST_KEY", "price_per_million": 1.0}
        config.dump(str(boxes_config))
        assert run(tool, boxes_config, "--work-dir", "look", "--check") == 0
        assert re.search(r"cost: about 0\.0\d for 0\.0\d million input tokens", capfd.readouterr().out)
        assert run(tool, boxes_config, "--work-dir", "out", "--budget", "0.0065") == 2
        assert "spent 0.006 of a budget of 0.0065 on 6 requests" in capfd.readouterr().err
        assert "photos leave this machine; about 1,000 tokens a question" in caplog.text
        assert "the budget lasts for about 6." in caplog.text
        assert run(tool, boxes_config, "--work-dir", "out", "--budget", "1") == 0
        found = summary("out")["report"]["ranker"]
        assert (found["cached"], found["cost"]["requests"]) == (5, 1 + found["asked"])
        files = [file for folder in ("look", "out") for file in Path(folder).rglob("*") if file.is_file()]
        assert any(file.suffix == ".log" for file in files)
        assert not [file for file in files if b"sk-very-secret" in file.read_bytes()]
        said = capfd.readouterr()
        assert "sk-very-secret" not in said.out + said.err + caplog.text

    def test_the_script_for_slurm(self, tool, boxes_config, serve, tmp_path):
        """The script itself; in place of a cluster and of vLLM, commands that start two nodes here, and a server."""
        server = serve()
        config = asking_servers(boxes_config, server.url)
        assert run(tool, config, "--work-dir", "one") == 0
        commands = tmp_path / "bin"
        commands.mkdir()
        stand_ins = {
            "srun": 'while [ "$1" != bash ]; do echo "$1" >>srun.txt; shift; done\n'
            "export SLURM_NNODES=2 SLURM_JOB_NODELIST=here\n"
            'SLURM_NODEID=1 "$@" & SLURM_NODEID=0 "$@" && wait $!',
            "scontrol": "echo 127.0.0.1; sleep 0.5; echo other",  # as it writes a long list
            "vllm": 'echo "$@" >>vllm.txt; exec sleep 3600',  # the server listens already
        }
        for name, body in stand_ins.items():
            (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (commands / name).chmod(0o755)
        environment = os.environ | {
            "PATH": f"{commands}:{os.environ['PATH']}", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NODES": "2",
            "SRUN_ARGS": "--gres=gpu:1 --time=1:00:00", "PORT": server.url.rpartition(":")[2].removesuffix("/v1"),
            "MASTER_PORT": free_port(),
        }  # fmt: skip
        script = [str(ROOT / "tools" / "slurm_test.sh"), str(config), "none", "m", "--work-dir", "two"]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        one, two = summary("one"), summary("two")
        assert two["num_processes"] == 2
        assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-9)
        assert Path("srun.txt").read_text().split() == [
            "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--gres=gpu:1", "--time=1:00:00",
        ]  # fmt: skip
        assert Path("vllm.txt").read_text() == 2 * f"serve m --port {environment['PORT']} --max-logprobs 20\n"

    def test_a_server_that_does_not_start_ends_its_node(self, tmp_path):
        (tmp_path / "vllm").write_text("#!/usr/bin/env bash\nexit 3\n")
        (tmp_path / "vllm").chmod(0o755)
        script = [str(ROOT / "tools" / "slurm_test.sh"), "--on-node", "config.py", "none", "m"]
        with closed_port() as closed:
            port = str(closed.getsockname()[1])
            environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PORT": port}
            done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 1
        assert f"vllm serve m ended before it listened on port {port}" in done.stderr

    def test_the_script_for_slurm_says_how_it_is_called(self):
        done = subprocess.run([str(ROOT / "tools" / "slurm_test.sh"), "config.py"], capture_output=True, text=True)
        assert done.returncode == 2
        assert "tools/slurm_test.sh CONFIG CHECKPOINT|none MODEL" in done.stderr


class TestPhotosThatCannotBeRead:
    """They are counted and named, and the run goes on; objects on them count as missed."""

    @staticmethod
    def spoil(config, names=("000003.png",)):
        for name in names:
            (config.parent / "val2017" / name).write_bytes(b"no photo")

    def test_given_boxes(self, tool, boxes_config):
        assert run(tool, boxes_config, "--work-dir", "whole") == 0
        self.spoil(boxes_config)
        assert run(tool, boxes_config, "--work-dir", "out", "--show-dir", "drawn") == 0
        found = summary("out")
        assert found["report"]["unreadable images"] == 1
        assert list(found["unreadable"]) == ["4"]
        assert "000003.png) is not an image" in found["unreadable"]["4"]
        assert (found["num_images"], found["report"]["regions"]) == (5, 9)
        assert found["metrics"]["recognition/objects"] == 12
        assert found["metrics"]["recognition/matched"] == 0.75
        assert len(list(Path("out").rglob("drawn/*.png"))) == 4
        kept = [record for record in read_records("whole/regions.jsonl") if record.image != 4]
        assert [record.to_json() for record in read_records("out/regions.jsonl")] == [r.to_json() for r in kept]
        log = next(Path("out").rglob("*.log")).read_text()
        assert "1 image could not be read and have no detections" in log

    def test_a_detector_does_not_see_the_black_image(self, tool, detector_config, detector_weights):
        self.spoil(detector_config)
        options = ["--work-dir", "out", "--results", "r.bbox.json", "--tta"]
        assert run(tool, detector_config, detector_weights, *options) == 0
        assert {record["image_id"] for record in json.loads(Path("r.bbox.json").read_text())} == {1, 2, 3, 5}
        assert summary("out")["report"]["unreadable images"] == 1

    def test_many_end_the_run(self, tool, boxes_config, capsys):
        self.spoil(boxes_config, ["000002.png", "000003.png", "000004.png"])
        assert run(tool, boxes_config, "--work-dir", "out", "--max-unreadable", "2") == 2
        said = capsys.readouterr().err
        assert "ImageReadError: image 5" in said
        assert "such image number 3, the first was: image 3" in said


class TestBadInput:
    def test_missing_data_and_weights(self, tool, boxes_config, capsys):
        changes = ["test_dataloader.dataset.data_root=nowhere", "test_dataloader.dataset.ann_file=ann.json"]
        status = run(tool, boxes_config, "absent.pth", "--cfg-options", *changes)
        said = capsys.readouterr().err
        assert status == 2
        assert "ann_file: nowhere/ann.json (looked for in " in said
        assert "checkpoint: absent.pth" in said
        assert "how to get it: the world: make it" in said
        assert "Traceback" not in said
        assert len(said.splitlines()) < 10

    def test_missing_image(self, tool, boxes_config, capsys):
        (boxes_config.parent / "val2017" / "000003.png").unlink()
        assert run(tool, boxes_config, "--work-dir", "out", "--max-unreadable", "0") == 2
        said = capsys.readouterr().err
        assert "ImageReadError: image 4" in said
        assert "000003.png" in said

    def test_misspelt_key(self, tool, boxes_config, capsys):
        assert run(tool, boxes_config, "--cfg-options", "model.recognizer.num_candidate=5") == 2
        assert "has no key 'num_candidate'; did you mean 'num_candidates'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "match"),
        [
            ("model.type=rar_mmdet.ProposalRecogniser", r"model: there is no .*; did you mean 'ProposalRecognizer'"),
            ("model.recogniser.num_candidates=3", "model: ProposalRecognizer has no key 'recogniser'; did you mean"),
            ("test_evaluator.0.type=rar_mmdet.SparseLvisMetric", r"test_evaluator\[0\]: there is no"),
            ("test_dataloader.dataset.type=NoDataset", "a type of the config is not known: .*NoDataset is not in the"),
            ("test_dataloader.dataset.pipeline.7.type=Resize", "--cfg-options .*: there is no such place"),
        ],
    )
    def test_misspelt_types_keys_and_places(self, option, match, tool, boxes_config, capsys):
        assert run(tool, boxes_config, "--work-dir", "out", "--cfg-options", option) == 2
        assert re.search(match, capsys.readouterr().err)

    def test_an_image_that_a_worker_cannot_read(self, tool, boxes_config, capsys):
        (boxes_config.parent / "val2017" / "000003.png").write_bytes(b"")
        options = ["--cfg-options", "test_dataloader.num_workers=1", "--max-unreadable", "0"]
        assert run(tool, boxes_config, "--work-dir", "out", *options) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("ImageReadError: image 4 (")
        assert "it has 0 bytes" in last

    def test_a_checkpoint_that_is_no_data(self, tool, detector_config, tmp_path, capsys):
        torch.save({"state_dict": {}, "x": Path("x")}, tmp_path / "odd.pth")
        assert run(tool, detector_config, tmp_path / "odd.pth", "--work-dir", "out") == 2
        assert "CheckpointError: checkpoint" in capsys.readouterr().err

    def test_vocabulary_of_another_dataset(self, tool, boxes_config, capsys):
        Path("names.txt").write_text("cat\ndog\nbird\nfish\n")
        options = ["--cfg-options", "model.recognizer.vocabulary=names.txt"]
        assert run(tool, boxes_config, "--work-dir", "out", *options) == 2
        assert "vocabulary has 4 names, the dataset 12 classes" in capsys.readouterr().err

    def test_missing_config(self, tool, capsys):
        assert run(tool, "configs/absent.py") == 2
        assert "config configs/absent.py does not exist" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            (["--out", "x.json"], "must end in .pkl"),
            (["--num-images", "0"], "at least 1"),
            (["--max-unreadable", "-1"], "at least 0"),
        ],
    )
    def test_bad_options(self, tool, options, match, capsys):
        with pytest.raises(SystemExit):
            run(tool, "c.py", *options)
        assert match in capsys.readouterr().err


def test_answers_of_rankers_are_kept_in_the_work_dir_unless_asked_not_to():
    def cache_of(ranker, path="out/answers.sqlite"):
        model = Config({"model": {"roi_head": {"recognizer": {"ranker": ranker}}}}).model
        keep_answers(model, path)
        return model.roi_head.recognizer.ranker.get("cache", "absent")

    assert cache_of({"type": "TransformersRanker", "model": "m"}) == "out/answers.sqlite"
    assert cache_of({"type": "TransformersRanker", "model": "m", "cache": "mine"}) == "mine"
    assert cache_of({"type": "TransformersRanker", "model": "m", "cache": "mine"}, path=None) is None
    assert cache_of({"type": "IdentityRanker"}) == "absent"


class TestTerminal:
    def test_a_run_says_little_and_where_things_are(self, boxes_config, tmp_path):
        command = [sys.executable, str(ROOT / "tools" / "test.py"), str(boxes_config), "--results", "found.bbox.json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=900)
        lines = done.stdout.splitlines()
        assert len(lines) <= 60, done.stdout
        assert not any("mmengine - INFO" in line or "Config:" in line for line in lines)
        for name in ("summary.json", "regions.jsonl", "found.bbox.json"):
            path = next(line for line in lines if name in line).split(": ", 1)[1]
            assert (tmp_path / path).is_file()
        logs = list((tmp_path / "work_dirs").rglob("*.log"))
        assert any("Config:" in log.read_text() for log in logs)

    def test_check_estimates_and_scores_nothing(self, tool, boxes_config, capfd):
        assert tool.main([str(boxes_config), "--check", "--work-dir", "w"]) == 0
        said = capfd.readouterr().out
        assert "5 images, 12 names, ranker FakeRanker" in said
        assert "the whole run: about" in said
        assert not Path("w/summary.json").exists()
        assert not Path("w/regions.jsonl").exists()

    def test_results_need_a_name_that_metrics_write(self, tool, boxes_config, capsys):
        assert tool.main([str(boxes_config), "--results", "found.json"]) == 2
        assert "must end in .bbox.json, such as found.bbox.json" in capsys.readouterr().err
