"""Import time of the package beside NumPy's: at most 0.6 s more. The first call of a process: at most 0.8 s more."""

import os
import subprocess
import sys
import tempfile

FIRST = """
import time
import numpy as np
from refattn import conv_attention, sparsek_attention_backward, sparsek_attention_forward
q, k, v = np.random.default_rng(0).standard_normal((3, 512, 16))
before = time.perf_counter()
{}
print(time.perf_counter() - before)
"""
CALLS = {
    "conv": "conv_attention(q, k, v, n_basis=2, probe=8, delta=1e-2)",
    "sparsek": "sparsek_attention_backward(*sparsek_attention_forward(q, k, v, q[:, 0], n_select=8, window=8))",
}


class Import:
    version = "1"

    def timeraw_numpy(self):
        return "import numpy"

    def timeraw_refattn(self):
        return "import refattn"


class FirstCall:
    """Beyond the import: with nothing compiled before, and with all that it needs kept by an earlier process."""

    version = "1"
    unit = "s"
    timeout = 300
    params = (list(CALLS), ["nothing kept", "kept"])
    param_names = ("operation", "loops")

    def track_first_call(self, operation, loops):
        with tempfile.TemporaryDirectory() as folder:
            known = {**os.environ, "REFATTN_CACHE_DIR": folder}
            command = [sys.executable, "-c", FIRST.format(CALLS[operation])]
            runs = 1 if loops == "nothing kept" else 4
            seconds = [float(subprocess.check_output(command, env=known, text=True)) for _ in range(runs)]
        return min(seconds)
