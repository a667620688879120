"""Tests as on a machine that lacks some packages; as a plugin of pytest, from this folder:

REFATTN_WITHOUT="gguf torch" PYTHONPATH=tests/robustness python -m pytest -p without
"""

import os
import sys

for name in os.environ.get("REFATTN_WITHOUT", "").split():
    sys.modules[name] = None  # its import raises ModuleNotFoundError, and find_spec finds nothing
