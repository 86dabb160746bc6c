"""Registries of scope `rar_mmdet`, children of MMDetection's.

A config that names `rar_mmdet.Something` makes MMEngine import this module, which then imports `locations` by itself;
no `custom_imports` is needed (MMEngine 0.10.7, `Registry.switch_scope_and_registry` and `import_from_location`).
Everything of the MMDetection face imports this module, so the checks that MMDetection needs are made here.
"""

# ruff: noqa: E402  # the check comes first: its message is clearer than that of a failing import
from rar_mmdet._host import check_host

check_host()

from mmdet import registry as mmdet_registry
from mmengine.registry import Registry

from rar_mmdet._lvis import patch_lvis
from rar_mmdet.components import add_lookup

__all__ = ["DATASETS", "HOOKS", "METRICS", "MODELS", "TASK_UTILS", "TRANSFORMS", "VISUALIZERS"]

# MMDetection's LVISMetric fails in lvis 0.5.3 on current NumPy; this mends lvis alone, when and if it is imported.
patch_lvis()

MODELS = Registry("model", parent=mmdet_registry.MODELS, scope="rar_mmdet", locations=["rar_mmdet.models"])
TASK_UTILS = Registry("task util", parent=mmdet_registry.TASK_UTILS, scope="rar_mmdet", locations=["rar_mmdet.models"])
DATASETS = Registry("dataset", parent=mmdet_registry.DATASETS, scope="rar_mmdet", locations=["rar_mmdet.datasets"])
TRANSFORMS = Registry(
    "transform", parent=mmdet_registry.TRANSFORMS, scope="rar_mmdet", locations=["rar_mmdet.datasets"]
)
METRICS = Registry("metric", parent=mmdet_registry.METRICS, scope="rar_mmdet", locations=["rar_mmdet.evaluation"])
HOOKS = Registry("hook", parent=mmdet_registry.HOOKS, scope="rar_mmdet", locations=["rar_mmdet.engine"])
VISUALIZERS = Registry(
    "visualizer", parent=mmdet_registry.VISUALIZERS, scope="rar_mmdet", locations=["rar_mmdet.visualization"]
)

add_lookup(TASK_UTILS.get)  # parts that users registered there can be named in a recognizer config
