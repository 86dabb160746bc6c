"""What all tests share: a test finds the same, however slow the machine and whichever tests ran before it."""

import random
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# No limit of time, which is the machine's: and the same examples in every run. `--hypothesis-profile default` looks for
# new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


def _subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


@pytest.fixture(autouse=True)
def _seed():
    """Weights and pixels drawn from global generators are the same in any order of tests."""
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_mmengine_globals():
    """Default scope, visualizers and message hubs are kept by name for the life of a process; loggers may stay."""
    yield
    manager = sys.modules.get("mmengine.utils.manager")
    if manager is not None:
        for cls in _subclasses(manager.ManagerMixin):
            if cls.__name__ != "MMLogger":
                cls._instance_dict.clear()
