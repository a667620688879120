"""What a release checks of itself is right here, and each check fails on a planted error."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSIONS = ("refattn/_version.py", "CITATION.cff", "codemeta.json", "CHANGELOG.md")


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
