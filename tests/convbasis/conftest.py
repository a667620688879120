import inspect
from types import ModuleType

import pytest


@pytest.fixture
def altered():
    """Return a copy of a module with a line of its source replaced: a planted error."""

    def planted(module, replacement):
        right, wrong = replacement
        source = inspect.getsource(module)
        assert right in source, f"no longer in {module.__name__}: {right}"
        copy = ModuleType(module.__name__)
        exec(compile(source.replace(right, wrong), f"<altered {module.__name__}>", "exec"), copy.__dict__)
        return copy

    return planted
