"""What all tests share: nothing a test leaves in MMEngine's globals may reach the next one."""

import sys
from collections.abc import Iterator

import pytest


def _subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


@pytest.fixture(autouse=True)
def _forget_mmengine_globals():
    """Default scope, visualizers and message hubs are kept by name for the life of a process; loggers may stay."""
    yield
    manager = sys.modules.get("mmengine.utils.manager")
    if manager is not None:
        for cls in _subclasses(manager.ManagerMixin):
            if cls.__name__ != "MMLogger":
                cls._instance_dict.clear()
