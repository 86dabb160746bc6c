import pytest
from mmdet.utils import register_all_modules


@pytest.fixture(autouse=True)
def _mmdet_scope():
    register_all_modules(init_default_scope=True)
