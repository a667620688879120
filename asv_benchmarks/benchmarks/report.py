"""The quick report: at most 60 s with nothing compiled before, and 25 s after that, on two cores."""

import os
import subprocess
import sys
import tempfile
import time


class Quick:
    version = "1"
    unit = "s"
    timeout = 900
    params = (["nothing kept", "kept"],)
    param_names = ("loops",)

    def track_seconds(self, loops):
        command = [sys.executable, "-c", "from refattn.cli import main; main()", "report", "--quick"]
        with tempfile.TemporaryDirectory() as folder:
            known = {**os.environ, "REFATTN_CACHE_DIR": folder}
            for _ in range(1 if loops == "nothing kept" else 2):
                begun = time.perf_counter()
                subprocess.run(command, env=known, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begun
