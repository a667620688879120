"""No verdict hangs on last bits: checks hold where matrix products, and FFTs, are summed in another order.

The next processor makes BLAS take another kernel. `other_order` is such a processor: tests run in a process in which
the package's products are of two halves, the second first, and FFTs are those of SciPy.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lengths import CAMPAIGN

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
JUDGED_BY_LAST_BITS = (
    "tests/testing/test_gradients.py", "tests/convbasis/guarded/test_gradients.py", "tests/convbasis/test_training.py",
    "tests/convbasis/starts/test_least_squares.py", "tests/lowrank/test_attention.py", "tests/sparsek/test_scoring.py",
)  # fmt: skip
EVERYTHING = (
    *JUDGED_BY_LAST_BITS,
    "tests/convbasis", "tests/lowrank", "tests/sparsek", "tests/decomposition", "tests/dense",
    "tests/test_edge_numerics.py", "tests/test_heads.py", "tests/test_masks.py",
    "tests/testing/conformance/test_check.py", "tests/testing/test_errors.py", "tests/testing/vectors",
)  # fmt: skip

DIGESTS = """
import json, sys
if sys.argv[1] == "other":
    import other_order
    other_order.install()
from operations import digests
print(json.dumps(digests(["dense causal", "lowrank", "scores", "conv transform causal"])))
"""


@pytest.mark.slow
def test_the_other_order_changes_the_last_bits_of_every_kind_of_operation(run_python):
    usual = json.loads(run_python(DIGESTS, "usual"))
    other = json.loads(run_python(DIGESTS, "other", REFATTN_FFT="scipy"))
    changed = {name.split()[0] for name in usual if usual[name] != other[name]}
    assert changed == {"dense", "lowrank", "sparsek", "conv"}


@pytest.mark.long
def test_what_is_judged_by_last_bits_holds_in_another_order():
    tests = EVERYTHING if CAMPAIGN else JUDGED_BY_LAST_BITS
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "other_order", *tests],
        cwd=ROOT,
        env={
            **os.environ,
            "REFATTN_FFT": "scipy",
            "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert result.returncode == 0, result.stdout[-6000:]
