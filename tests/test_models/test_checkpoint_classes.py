"""Checkpoints of MMEngine's Runner load; nothing that could run code does."""

import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

import rar_mmdet.models  # noqa: F401  # allows the classes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth"


def test_what_a_runner_saves(path):
    hub = MessageHub.get_instance("a run")
    for step in range(3):
        hub.update_scalar("loss", 1.5 * step)
        hub.update_scalar("float32", np.float32(step))
    hub.update_info("epoch", np.int64(2))
    saved = {
        "state_dict": {"w": torch.ones(2)},
        "message_hub": hub.state_dict(),
        "meta": {"seed": 3, "classes": ("a",)},
    }
    torch.save(saved, path)
    loaded = torch.load(path)
    buffer = loaded["message_hub"]["log_scalars"]["loss"]
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == 1.5
    assert buffer.statistics("max") == 3.0
    assert loaded["message_hub"]["runtime_info"]["epoch"] == 2
    assert torch.equal(loaded["state_dict"]["w"], torch.ones(2))


class Command:
    def __reduce__(self):
        return os.system, ("touch harmed",)


class Attribute:
    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


class OfAnotherClass:
    def __reduce__(self):
        return getattr, (np.ndarray, "tofile")


@pytest.mark.parametrize("content", [Command(), Attribute(), OfAnotherClass()])
def test_nothing_else_is_unpickled(content, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "x": content}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    assert not (tmp_path / "harmed").exists()
