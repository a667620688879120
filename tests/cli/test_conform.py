"""``refattn conform`` and ``refattn vectors``: exit statuses, files, and errors in one line."""

import json
import sys
from xml.etree import ElementTree as Tree

import pytest

pytest.importorskip("typer", reason="needs the extra 'report'")

from typer.testing import CliRunner

from refattn import cli
from refattn.testing.conformance.loading import load_function

RIGHT = """
import refattn

def attention(q, k, v, *, causal, scale):
    return refattn.dense_attention(q, k, v, mask="causal" if causal else "full", scale=scale)

def backward(dout, q, k, v, *, causal, scale):
    _, cache = refattn.dense_attention_forward(q, k, v, mask="causal" if causal else "full", scale=scale)
    return refattn.dense_attention_backward(dout, cache)

def unscaled(q, k, v, *, causal, scale):
    return attention(q, k, v, causal=causal, scale=1.0)

number = 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a folder that holds the module `toykernel`."""
    (tmp_path / "toykernel.py").write_text(RIGHT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "toykernel", raising=False)
    return lambda *arguments: CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})


def test_a_right_kernel_gives_status_0_and_its_gradients_are_checked(run):
    result = run(
        "conform", "toykernel:attention", "--op", "dense", "--backward", "toykernel:backward", "--profile", "quick"
    )
    assert result.exit_code == 0, result.output
    assert "with gradients: 45 pass, 0 fail, 0 refused, 18 not run" in result.output


def test_a_wrong_kernel_gives_status_1_its_cause_and_a_json_report(run, tmp_path):
    result = run("conform", "toykernel:unscaled", "--op", "dense", "--only", "n = 16", "--json", "r.json")
    assert result.exit_code == 1
    assert "cause: missing scale" in result.output
    data = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [case["verdict"] for case in data["cases"]] == ["fail"]


def test_what_failed_is_said_in_a_few_lines_and_in_full_on_request(run):
    said = run("conform", "toykernel:unscaled", "--op", "dense", "--only", "n = 16")
    assert len(said.output.splitlines()) == 4
    assert "FAILED causal, n = 16 (seed 0): out row (0, " in said.output
    in_full = run("conform", "toykernel:unscaled", "--op", "dense", "--only", "n = 16", "--verbose")
    assert "ordinary: causal, n = 16" in in_full.output
    assert "expected [" in in_full.output


def test_a_report_is_written_as_junit_xml_as_well(run, tmp_path):
    result = run(
        "conform", "toykernel:unscaled", "--op", "dense", "--only", "n = 16", "--junit", "r.xml", "--json", "r.json"
    )
    assert result.exit_code == 1
    (suite,) = Tree.parse(tmp_path / "r.xml").getroot()
    assert suite.find("testcase/failure").get("message").startswith("causal, n = 16 (seed 0)")
    assert (tmp_path / "r.json").exists()
    printed = run("conform", "toykernel:attention", "--op", "dense", "--only", "n = 16", "--junit", "-")
    assert Tree.fromstring(printed.stdout).get("failures") == "0"


def test_what_is_taken_and_lacking_is_said_on_the_command_line(run):
    result = run(
        "conform", "toykernel:attention", "--op", "dense", "--profile", "quick", "--takes", "n=32, d=16, heads=2",
        "--without", "grouped", "--strict", "--empty-rows", "skip", "--timeout", "60", "--name", "scale=scale",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "0 fail, 0 refused" in result.output
    assert "left out: without grouped" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("toykernel:nothing", "--op", "dense"),
        ("toykernel:number", "--op", "dense"),
        ("toykernel", "--op", "dense"),
        ("no_such_module:attention", "--op", "dense"),
        ("toykernel:attention", "--op", "quadratic"),
        ("toykernel:attention", "--op", "dense", "--layout", "XYZ"),
        ("toykernel:attention", "--op", "dense", "--only", "no such case"),
        ("toykernel:attention", "--op", "dense", "--takes", "n%64, n<=32"),
        ("toykernel:attention", "--op", "dense", "--name", "mask"),
        ("toykernel:attention", "--op", "dense", "--profile", "huge"),
        ("toykernel:attention", "--op", "dense", "--device", "cuda"),
        ("toykernel:attention", "--op", "dense", "--json", "same", "--junit", "same"),
    ],
    ids=lambda a: " ".join(a),
)
def test_wrong_usage_gives_status_2_and_no_traceback(run, arguments):
    result = run("conform", *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_function_is_found_by_a_dotted_path():
    assert load_function("json:decoder.JSONDecoder")().decode("1") == 1


@pytest.mark.parametrize("name", ["json", "json:", ":loads", "", ":"])
def test_a_name_without_its_two_parts_is_told_what_was_wanted(name):
    with pytest.raises(ValueError, match=r"module:function was wanted"):
        load_function(name)


def test_vectors_verify_prints_every_case(run):
    result = run("vectors", "verify")
    assert result.exit_code == 0, result.output
    assert "ok     dense: wide" in result.output


def test_vectors_verify_of_a_folder_without_them_gives_status_1(run, tmp_path):
    assert run("vectors", "verify", "--dir", str(tmp_path)).exit_code == 1


@pytest.mark.slow
def test_vectors_generate_says_that_the_bytes_are_the_shipped_ones(run, tmp_path):
    pytest.importorskip("mpmath", reason="needs the extra 'test'")
    result = run("vectors", "generate", "--out", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    assert "4 of 4 bit for bit the shipped ones" in result.output
    assert run("vectors", "verify", "--dir", str(tmp_path / "new")).exit_code == 0
