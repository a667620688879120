"""The table of `docs/explanation/real-clients.md` anew: every client that is installed, through the check.

    python tests/clients/table.py [--profile quick] [--json FOLDER] [NAME …]
    python tests/clients/table.py --device cuda PyTorch Triton      # on a graphics card, in some minutes

Every client and dtype runs in a process of its own, since libraries read their settings when they are imported. A line
of Markdown comes for each: what was refused, and what failed with the cause that the check names, below the table.
"""

import argparse
import json
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from glue import CLIENTS, Client, environment


def run_one(client: Client, dtype: str, profile: str, device: str | None) -> None:
    """Check a client in this process and print the report as JSON."""
    from refattn.testing import check_attention

    begun = time.perf_counter()
    report = check_attention(
        client.load(), client.spec, backward=client.backward, dtype=dtype, profile=profile, device=device,
        **client.options,
    )  # fmt: skip
    data = report.to_dict() | {"seconds": time.perf_counter() - begun, "text": str(report)}
    print(json.dumps(data))


def line(client: Client, dtype: str, data: dict) -> str:
    """A row of the table."""
    versions = " on ".join(f"{name} {version(name)}" for name in client.packages)
    counts = data["counts"]
    shown = " / ".join(str(counts[x]) for x in ("pass", "fail", "refused", "not run"))
    causes = "; ".join(cause["name"] for cause in data["causes"])
    gradients = "with gradients" if client.backward else "forward"
    return f"| {client.name} ({versions}) | {dtype}, {gradients} | {shown} | {causes} | {data['seconds']:.0f} s |"


def installed(client: Client) -> bool:
    try:
        return all(version(name) for name in client.packages)
    except PackageNotFoundError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="text in the names of clients; all if not given")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--dtype")
    parser.add_argument("--device", help="where the arrays of PyTorch and JAX are, as cuda or gpu")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="also the reports")
    parser.add_argument("--one", action="store_true", help="the first of them in this process, as JSON")
    options = parser.parse_args()
    chosen = [x for x in CLIENTS if not options.names or any(name in x.name for name in options.names)]
    if options.one:
        run_one(chosen[0], options.dtype or "float32", options.profile, options.device)
        return 0
    print("| client | dtype | pass / fail / refused / not run | named | time |\n| --- | --- | --- | --- | --- |")
    for client in chosen:
        if not installed(client):
            print(f"| {client.name} | | not installed | | |", flush=True)
            continue
        for dtype in client.dtypes:
            if options.dtype not in (None, dtype):
                continue
            command = [sys.executable, __file__, client.name, "--one", "--dtype", dtype, "--profile", options.profile]
            command += ["--device", options.device] if options.device else []
            done = subprocess.run(
                command, env=environment(client, options.device), capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"| {client.name} | {dtype} | ended with {done.returncode}: {done.stderr[-300:]!r} | | |")
                continue
            data = json.loads(done.stdout.splitlines()[-1])
            print(line(client, dtype, data), flush=True)
            if options.json:
                options.json.mkdir(exist_ok=True)
                name = f"{client.name} {dtype} {options.profile}".replace(" ", "-").replace(",", "")
                (options.json / f"{name}.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
