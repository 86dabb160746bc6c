import pytest
import torch
from mmdet.utils import register_all_modules


@pytest.fixture(autouse=True)
def _mmdet_scope(monkeypatch, tmp_path_factory):
    """MMDetection's registries as its tools set them up, and memories of tests kept out of the user's cache."""
    register_all_modules(init_default_scope=True)
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path_factory.getbasetemp() / "rar_cache"))
    torch.manual_seed(0)
