"""Mutation testing: errors put into a copy of the package, one at a time, and which test catches each.

    python .ci/mutants --seed 0 --count 200 [--only sparsek] [--resume FILE]

A mutant is one small change of the kind that numerical code suffers from; ``places.py`` has the list. Which ones are
made is decided by the seed and by the text of each alone, so an edit elsewhere changes no choice; the parts of the
package take turns. The repository is copied to a temporary folder, the copy comes first on the path, and its tests run:
those named after the module first, then the others of its part, the quick ones before the slow ones, until one fails.
A test that quotes the source and does not find its line has caught nothing and is skipped.

A line of JSON a mutant says what became of it: ``caught`` (by which test), ``timeout`` (caught too), ``survived``, or
``equivalent``: it computes the same, for the reason that ``equivalent.txt`` gives. The file given with
``--resume`` is added to, and what it has is not run again. The status is 1 if a mutant survived.

Why no package does this: mutmut 3.8 leaves out every decorated function, which all compiled ones are, wraps the others
in a dispatcher that Numba cannot compile, and takes no sample. cosmic-ray 8.7 writes into the working tree, has one
test command for all modules and no seeded sample either, and changes no slice, keyword, statement, maximum or term.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path

from bench import PARTS, Bench
from places import Mutant, is_python, mutants_of

KEY = ("file", "scope", "right", "wrong")
EQUIVALENT = Path(__file__).with_name("equivalent.txt")


def choose(root: Path, seed: int, only: list[str]) -> Iterator[tuple[str, Mutant]]:
    """Yield (part, mutant), the parts taking turns, each in the order of the seed."""
    queues: dict[str, list[Mutant]] = {part: [] for part in PARTS}
    for path in sorted((root / "refattn").rglob("*.py")):
        file = path.relative_to(root / "refattn").as_posix()
        part = max((part for part in PARTS if file.startswith(part)), key=len, default="")
        if part and (not only or file.startswith(tuple(only))):
            queues[part] += mutants_of(path, file)

    def of(part: str) -> Iterator[tuple[str, Mutant]]:
        distinct = {mutant.key: mutant for mutant in queues[part]}
        for key in sorted(distinct, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()):
            if is_python(distinct[key].source((root / "refattn" / key[0]).read_bytes())):
                yield part, distinct[key]

    yield from filter(None, chain.from_iterable(zip_longest(*map(of, PARTS))))


def equivalents(text: str) -> dict[tuple[str, str, str, str], str]:
    """Return the reason for every mutant in a text like ``equivalent.txt``."""
    found = {}
    for block in filter(None, re.split(r"\n\s*\n", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())):
        place, *lines = block.splitlines()
        file, _, scope = place.partition(" ")
        right, wrong = ("\n".join(x[2:] for x in lines if x.startswith(sign)) for sign in "-+")
        found[file, scope, right, wrong] = " ".join(x.strip() for x in lines if x[0] not in "-+")
    return found


def main() -> int:
    """Make the mutants asked for on the command line and try each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", action="append", default=[], metavar="PREFIX", help="of a path below refattn")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="JSON lines to add to")
    parser.add_argument("--limit", type=int, default=120, metavar="SECONDS", help="that one test may take")
    options = parser.parse_args()
    lines = options.resume.read_text("utf-8").splitlines() if options.resume and options.resume.exists() else []
    known = [json.loads(line) for line in lines]
    timed = {(x["test"], x["stamp"]): x["seconds"] for x in known if "test" in x}
    done = {tuple(x[name] for name in KEY): x for x in known if "outcome" in x}
    reasons = equivalents(EQUIVALENT.read_text("utf-8"))

    def record(entry: dict[str, object]) -> None:
        if options.resume:
            with options.resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    tally: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.limit)
        tests = {part: bench.tests_of(part) for part in PARTS}
        for part, mutant in islice(choose(bench.copy, options.seed, options.only), options.count):
            if mutant.key in reasons:
                outcome, by = "equivalent", reasons[mutant.key]
            elif mutant.key in done:
                outcome, by = done[mutant.key]["outcome"], done[mutant.key]["by"]
            else:
                if new := [test for test in tests[part].items() if test not in timed]:
                    seconds = bench.seconds([test for test, _ in new])
                    for test, stamp in new:
                        timed[test, stamp] = seconds.get(test, 0.0)
                        record({"test": test, "stamp": stamp, "seconds": timed[test, stamp]})
                begun = time.monotonic()
                outcome, by = bench.judge(mutant, {test: timed[test, stamp] for test, stamp in tests[part].items()})
                taken = round(time.monotonic() - begun, 1)
                name = dict(zip(KEY, mutant.key, strict=True))
                record({"part": part, **name, "outcome": outcome, "by": by, "seconds": taken})
                print(f"{taken:6.1f} s  {outcome}: {by}\n{mutant}\n", flush=True)
            tally[part][outcome] += 1
            if outcome not in ("caught", "timeout", "equivalent"):
                survivors.append(mutant)
    for part, counts in tally.items():
        print(f"{part:20} " + (", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "none"))
    print(*survivors, sep="\n\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
