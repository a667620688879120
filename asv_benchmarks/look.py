"""A look at some benchmarks: one sample of each in the environment at hand, printed; nothing of the repository changes.

    python asv_benchmarks/look.py                       # a first look, under two minutes
    python asv_benchmarks/look.py --bench ConvTargets   # any options of `asv run`

`asv run` alone would do, but for two things: it notes which benchmarks there are in ``results/benchmarks.json``, which
is in the repository, and it asks about the machine first. Here its results folder is one that is thrown away.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FIRST = [
    r"dense.DenseTime.time_forward\((256|1024), 'float32'",
    r"conv.ConvAttention.time_attention\('(fast|dense|torch)', (1024|4096), 16, 'float32'",
    r"sparsek_attention.SparseKAttention.time_forward\('(fast|dense|torch)', (1024|4096)\)",
]
"""Exact attention, Conv-Basis and SparseK at lengths at which a point takes a second; asv sees parameters in a name."""


def main():
    """Run asv with the options given, or those of a first look, and return its status."""
    asv = [sys.executable, "-m", "asv"]
    options = sys.argv[1:] or [part for bench in FIRST for part in ("--bench", bench)]
    with tempfile.TemporaryDirectory() as folder:
        conf = json.loads((HERE / "asv.conf.json").read_text(encoding="utf-8"))
        conf |= {"repo": str(HERE.parent), "benchmark_dir": str(HERE / "benchmarks")}
        conf |= {name: str(Path(folder, name)) for name in ("results_dir", "html_dir", "env_dir")}
        Path(folder, "asv.conf.json").write_text(json.dumps(conf), encoding="utf-8")
        if not Path("~/.asv-machine.json").expanduser().exists():
            subprocess.run([*asv, "machine", "--yes"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return subprocess.run(
            [*asv, "run", "--quick", "--python=same", "--show-stderr", *options],
            cwd=folder,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
