"""What a release checks of itself is right here, and each check fails on a planted error."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSIONS = ("refattn/_version.py", "CITATION.cff", "codemeta.json", "CHANGELOG.md", ".zenodo.json")


@pytest.fixture(scope="module")
def metadata():
    spec = importlib.util.spec_from_file_location("metadata", ROOT / ".ci" / "metadata.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts():
    texts = {name: (ROOT / name).read_text("utf-8") for name in VERSIONS[1:]}
    import refattn

    return texts | {VERSIONS[0]: f'__version__ = "{refattn.__version__}"'}


def test_the_version_is_the_same_everywhere(metadata, texts):
    assert metadata.version_errors(texts) == []


@pytest.mark.parametrize("name", VERSIONS)
def test_another_version_in_one_file_is_noticed(metadata, texts, name):
    import refattn

    assert metadata.version_errors(texts | {name: texts[name].replace(refattn.__version__, "0.0.9")})


def test_codemeta_that_says_something_else_is_noticed(metadata):
    packaged = {"description": "A package", "dependencies": ["numpy>=1.26"]}
    written = {"name": "a", "description": "A package", "softwareRequirements": ["numpy"]}
    assert metadata.codemeta_errors(written, {"name": "a"}, packaged) == []
    assert metadata.codemeta_errors(written, {"name": "b"}, packaged)
    assert metadata.codemeta_errors(written | {"softwareRequirements": []}, {"name": "a"}, packaged)


def test_data_without_a_licence_text_is_noticed(metadata, tmp_path):
    data = tmp_path / "package" / "part" / "data"
    data.mkdir(parents=True)
    (data / "heads.npz").write_bytes(b"x")
    assert metadata.licence_errors(tmp_path / "package") == [
        "package/part/data/heads.npz: no *LICENSE*.txt in its folder names it"
    ]
    (data / "model-LICENSE.txt").write_text("other.npz: public domain")
    assert metadata.licence_errors(tmp_path / "package")
    (data / "model-LICENSE.txt").write_text("*.npz: public domain")
    assert metadata.licence_errors(tmp_path / "package") == []


def test_all_shipped_data_have_a_licence_text(metadata):
    import refattn

    assert metadata.licence_errors(Path(refattn.__file__).parent) == []


def test_an_expression_without_a_licence_of_the_data_is_noticed(metadata):
    texts = ["heads.npz: Apache License, Version 2.0", "*.jsonl: BSD-3-Clause, as the package."]
    assert metadata.expression_errors("BSD-3-Clause AND Apache-2.0", texts) == []
    assert metadata.expression_errors("BSD-3-Clause", texts)
    assert metadata.expression_errors("BSD-3-Clause AND Apache-2.0", texts[1:])


CONVERTED = {
    "name": "a title",
    "version": "1.0",
    "license": "https://spdx.org/licenses/BSD-3-Clause",
    "author": [{"@type": "Person", "name": "Somebody"}],
    "keywords": ["attention"],
}
ZENODO = {
    "title": "a title",
    "version": "1.0",
    "description": "A package",
    "license": "BSD-3-Clause",
    "creators": [{"name": "Somebody"}],
    "keywords": ["attention"],
    "related_identifiers": [{"identifier": "arXiv:2405.05219"}],
}


def test_a_zenodo_record_that_says_what_the_citation_says_passes(metadata):
    assert metadata.zenodo_errors(ZENODO, CONVERTED, {"description": "A package"}, 'value: "arXiv:2405.05219"') == []


@pytest.mark.parametrize("key", ZENODO)
def test_a_zenodo_record_that_says_something_else_is_noticed(metadata, key):
    other = ZENODO | {key: [] if isinstance(ZENODO[key], list) else "other"}
    assert metadata.zenodo_errors(other, CONVERTED, {"description": "A package"}, 'value: "arXiv:2405.05219"')


def test_a_link_that_leads_nowhere_is_noticed(metadata, tmp_path):
    (tmp_path / "there.md").write_text("x")
    text = "[a](there.md#part), [b](https://arxiv.org), [c](#here)"
    assert metadata.link_errors("README.md", text, tmp_path, None) == []
    assert len(metadata.link_errors("README.md", text + "[d](gone.md)", tmp_path, None)) == 1
    assert len(metadata.link_errors("README.md", text, tmp_path, {"Source": "https://example.org"})) == 1


@pytest.mark.parametrize(
    "line", ["pip install refattn", 'python -m pip install "refattn[report,models]"', "`pip install 'refattn[test]'`"]
)
def test_a_line_that_installs_by_a_name_that_no_index_has_is_noticed(metadata, line):
    assert len(metadata.install_errors("page", line)) == 1


@pytest.mark.parametrize(
    "line", ['pip install ".[report]"', 'pip install "$(ls dist/refattn-*.whl)[report]"', "pip install asv; refattn x"]
)
def test_a_line_that_installs_what_is_there_passes(metadata, line):
    assert metadata.install_errors("page", line) == []


def test_what_has_no_place_at_the_top_is_noticed(metadata):
    assert metadata.top_errors(metadata.tracked()) == []
    assert metadata.top_errors(["README.md", "notes.txt"]) == ["notes.txt has no place at the top of the repository"]


@pytest.mark.parametrize(
    "name",
    ["tests/test_masks.py", "refattn/__pycache__/dense.pyc", "refattn/docs/index.md", "refattn/.mypy_cache/x", "a.nbi"],
)
def test_what_has_no_place_in_a_wheel_is_noticed(metadata, name):
    wheel = {"refattn/py.typed": 0, "refattn/dense.py": 10, "refattn-1.dist-info/licenses/LICENSE": 5}
    assert metadata.archive_errors(list(wheel), wheel, ["licenses/LICENSE"]) == []
    assert metadata.archive_errors([*wheel, name], wheel, ["licenses/LICENSE"])


def test_what_is_missing_from_a_wheel_is_noticed(metadata):
    assert metadata.archive_errors(["refattn/py.typed"], {}, ["licenses/LICENSE"])
    assert metadata.archive_errors(["licenses/LICENSE"], {}, ["licenses/LICENSE"])
    assert metadata.archive_errors(["refattn/py.typed"], {"refattn/dense.py": 0}, [])


def test_the_supported_pythons_are_those_of_the_classifiers(metadata):
    oldest, newest = metadata.pythons()
    assert metadata.project()["requires-python"] == f">={oldest}"
    assert int(newest.partition(".")[2]) >= 13
