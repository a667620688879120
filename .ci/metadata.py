"""The version is the same everywhere it is written, the metadata agree, and the archives hold what they should.

    python .ci/metadata.py                    check the sources; print the version
    python .ci/metadata.py WHEEL SDIST        check the archives
    python .ci/metadata.py --pythons          print the oldest and the newest supported Python

Needs cffconvert, which the extra "dev" installs, for the sources.
"""

import json
import re
import subprocess
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

SOURCES = (
    "pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "codemeta.json", ".zenodo.json", "CONTRIBUTING.md",
    "CODE_OF_CONDUCT.md", "SECURITY.md", "LICENSE",
)  # fmt: skip

TOP = {
    *SOURCES,
    "refattn",
    "tests",
    "asv_benchmarks",
    "docs",
    ".ci",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
}
"""What may stand at the top of the repository."""

LICENCES = {"BSD-3-Clause": "BSD-3-Clause", "Apache-2.0": "Apache License, Version 2.0"}
"""SPDX identifiers, and the words of a licence text that mean them."""


def project():
    """Return the project's table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def version_errors(texts):
    """Return what disagrees, given the texts of the files that hold a version, by name."""
    patterns = {
        "refattn/_version.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "codemeta.json": r'^  "version": "(.+)",?$',
        ".zenodo.json": r'^  "version": "(.+)",?$',
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


def expression_errors(expression, texts):
    """Return where the SPDX expression of the package is not that of its own licence and those that its data name."""
    named = {spdx for spdx, words in LICENCES.items() if any(words in text or spdx in text for text in texts)}
    wanted = " AND ".join(spdx for spdx in LICENCES if spdx in named | {"BSD-3-Clause"})
    return [] if expression == wanted else [f"pyproject.toml: license {expression!r} came, {wanted!r} was wanted"]


def zenodo_errors(written, converted, packaged, citation):
    """Return where .zenodo.json says something else than CITATION.cff, as codemeta and as text, or pyproject.toml."""
    wanted = {
        "title": converted["name"],
        "version": converted["version"],
        "description": packaged["description"],
        "license": converted["license"].rpartition("/")[2],
        "creators": [{"name": person["name"]} for person in converted["author"]],
        "keywords": converted["keywords"],
    }
    errors = [f".zenodo.json: {key} is not that of CITATION.cff" for key in wanted if written.get(key) != wanted[key]]
    named = {one["identifier"] for one in written.get("related_identifiers", [])}
    papers = set(re.findall(r"arXiv:[0-9.]+[0-9]", citation))
    return errors + [f".zenodo.json: {paper} is in one of it and CITATION.cff" for paper in sorted(named ^ papers)]


def link_errors(name, text, root, urls):
    """Return the links of a page that lead nowhere: to a file that is not there, or relative where there are `urls`.

    While the project has no public address, links are paths that work in a checkout.
    """
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    files = [target for target in targets if target and "://" not in target]
    if urls:
        return [
            f"{name}: link {file} came, one that begins with an address of project.urls was wanted" for file in files
        ]
    return [
        f"{name}: link {file} came, a file of the checkout was wanted" for file in files if not (root / file).exists()
    ]


def install_errors(name, text):
    """Return the lines that install the package by its name, which no index has."""
    found = re.findall(r"""pip install[^\n`;&|#]*?[ '"](refattn(?:\[[\w,]+\])?)(?![\w.\[-])""", text)
    return [f"{name}: pip install {what} came, a path such as '.' or a wheel was wanted" for what in found]


def top_errors(names):
    """Return what stands at the top of the repository and has no place there."""
    return [f"{name} has no place at the top of the repository" for name in sorted(set(names) - TOP)]


def tracked():
    """Return the names at the top that git knows, or none where the sources are no checkout."""
    if not (ROOT / ".git").exists():
        return set()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line.partition("/")[0] for line in listed.splitlines()}


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

    names = ("refattn/_version.py", "CITATION.cff", "codemeta.json", "CHANGELOG.md", ".zenodo.json")
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    converted, packaged = json.loads(Citation(texts["CITATION.cff"]).as_codemeta()), project()
    errors = version_errors(texts) + codemeta_errors(json.loads(texts["codemeta.json"]), converted, packaged)
    errors += zenodo_errors(json.loads(texts[".zenodo.json"]), converted, packaged, texts["CITATION.cff"])
    errors += licence_errors(ROOT / "refattn") + licence_errors(ROOT / "docs", "records")
    notes = [path.read_text(encoding="utf-8") for path in (ROOT / "refattn").rglob("data/*LICENSE*.txt")]
    errors += expression_errors(packaged["license"], notes) + top_errors(tracked())
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        name, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
        errors += install_errors(name, text)
        if name == "README.md":
            errors += link_errors(name, text, ROOT, packaged.get("urls"))
    return errors


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
