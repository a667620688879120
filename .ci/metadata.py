"""The version is the same everywhere it is written, the metadata agree, and the archives hold what they should.

    python .ci/metadata.py                    check the sources; print the version
    python .ci/metadata.py WHEEL SDIST        check the archives
    python .ci/metadata.py --pythons          print the oldest and the newest supported Python

Needs cffconvert, which the extra "dev" installs, for the sources.
"""

import json
import re
import sys
import tarfile
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 15 * 2**20
"""Bytes that an archive may have."""

FOREIGN = re.compile(
    r"(^|/)(tests|docs|asv_benchmarks|__pycache__|\.[a-z]+_cache|\.hypothesis)(/|$)"
    r"|\.(py[cod]|nbi|nbc)$"
)
"""Paths that have no place in a wheel."""

SOURCES = ("pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "codemeta.json", "CONTRIBUTING.md", "LICENSE")


def project():
    """Return the project's table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def version_errors(texts):
    """Return what disagrees, given the texts of the files that hold a version, by name."""
    patterns = {
        "refattn/_version.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "codemeta.json": r'^  "version": "(.+)",?$',
        "CHANGELOG.md": r"^## (?:Unreleased )?\(?([0-9][0-9A-Za-z.]*)\)?",
    }
    found = {}
    for name, pattern in patterns.items():
        match = re.search(pattern, texts[name], re.MULTILINE)
        found[name] = match.group(1) if match else None
    wanted = found["refattn/_version.py"]
    return [f"{name}: version {came} came, {wanted} was wanted" for name, came in found.items() if came != wanted]


def codemeta_errors(written, converted, packaged):
    """Return where codemeta.json, which may say more, says something else than CITATION.cff or pyproject.toml."""
    requirements = [re.match(r"[\w-]+", line).group() for line in packaged["dependencies"]]
    wanted = converted | {"description": packaged["description"], "softwareRequirements": requirements}
    different = [key for key in wanted if written.get(key) != wanted[key]]
    return [f"codemeta.json: {key} is not that of CITATION.cff or pyproject.toml" for key in different]


def licence_errors(package, kept="data"):
    """Return the files in folders `kept` that no licence text beside them names, as ``heads.npz`` or as ``*.jsonl``."""
    errors = []
    for folder in sorted(path for path in package.rglob(kept) if path.is_dir()):
        notes = " ".join(path.read_text(encoding="utf-8") for path in folder.glob("*LICENSE*.txt"))
        named = {word.strip(",:;.") for word in notes.split()}
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "LICENSE" not in path.name]
        errors += [
            f"{file.relative_to(package.parent)}: no *LICENSE*.txt in its folder names it"
            for file in files
            if not any(fnmatch(file.relative_to(folder).as_posix(), name) for name in named)
        ]
    return errors


def archive_errors(names, sizes, licences):
    """Return what is wrong with a wheel: `names` and `sizes` of its files, `licences` that it must hold."""
    errors = [f"{name} has no place in a wheel" for name in names if FOREIGN.search(name)]
    held = "\n".join(names) + "\n"
    errors += [f"{licence} is missing from the wheel" for licence in licences if f"{licence}\n" not in held]
    errors += [] if "refattn/py.typed" in names else ["refattn/py.typed is missing from the wheel"]
    return errors + [f"{name} is empty" for name, size in sizes.items() if size == 0 and not name.endswith("py.typed")]


def check_sources():
    """Return everything that disagrees in the sources."""
    from cffconvert import Citation

    names = ("refattn/_version.py", "CITATION.cff", "codemeta.json", "CHANGELOG.md")
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    converted = json.loads(Citation(texts["CITATION.cff"]).as_codemeta())
    errors = version_errors(texts) + codemeta_errors(json.loads(texts["codemeta.json"]), converted, project())
    return errors + licence_errors(ROOT / "refattn") + licence_errors(ROOT / "docs", "records")


def check_archives(wheel, sdist):
    """Return everything that is wrong with the archives."""
    errors = [f"{p.name}: {p.stat().st_size} bytes came, at most {LARGEST} were wanted" for p in (wheel, sdist)
              if p.stat().st_size > LARGEST]  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
    package = ROOT / "refattn"
    licences = ["licenses/LICENSE", *(p.relative_to(ROOT).as_posix() for p in package.rglob("data/*LICENSE*.txt"))]
    errors += archive_errors(list(sizes), sizes, licences)
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    return errors + [f"{name} is missing from the sdist" for name in SOURCES if name not in held]


def pythons():
    """Return the oldest and the newest Python that the classifiers name."""
    found = re.findall(r"Python :: (3\.\d+)$", "\n".join(project()["classifiers"]), re.MULTILINE)
    ordered = sorted(found, key=lambda version: int(version.partition(".")[2]))
    return ordered[0], ordered[-1]


def main(arguments):
    """Check what the arguments name; print the version, or the Pythons."""
    if arguments == ["--pythons"]:
        print(*pythons())
        return 0
    errors = check_archives(*map(Path, arguments)) if arguments else check_sources()
    for error in errors:
        print(f"release: {error}", file=sys.stderr)
    if not errors and not arguments:
        print(re.search('"(.+)"', (ROOT / "refattn" / "_version.py").read_text().split("__version__")[1]).group(1))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
