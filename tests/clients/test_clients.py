"""Other people's attention, where it is installed with the tests: what is right passes, and what is not is named."""

import importlib.util
from pathlib import Path

import pytest

from refattn.testing import check_attention

SOURCE = Path(__file__).with_name("glue.py")
FEW = ["n = 16", "4 on 2", "d_v ≠ d", "mask: random and", "mask: empty rows", "deviation 4"]


@pytest.fixture(scope="module")
def clients():
    """The clients of `glue.py` by name."""
    spec = importlib.util.spec_from_file_location("clients_glue", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {client.name: client for client in module.CLIENTS}


def check(client, dtype, **options):
    return check_attention(
        client.load(), client.spec, backward=client.backward, dtype=dtype, profile="quick", **client.options, **options
    )


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["PyTorch SDPA, math", "PyTorch SDPA, flash", "PyTorch FlexAttention, eager"])
def test_pytorch_conforms_and_refuses_what_it_lacks(clients, name, dtype):
    report = check(clients[name], dtype, only=FEW)
    assert report.passed, str(report)
    refused = {case.case for case in report.cases if case.verdict == "refused"}
    lacking = {case.case for case in report.cases if "d_v" in case.tags} if "flash" in name else set()
    assert refused == lacking
    assert {case.kind for case in report.cases if case.verdict == "not run"} <= {"option"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning:onnx")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_reference_of_onnx_conforms(clients, dtype):
    pytest.importorskip("onnx", reason="needs the extra 'test'")
    report = check(clients["ONNX reference, Attention"], dtype, only=FEW)
    options = sum(case.kind == "option" for case in report.cases)
    right = {"pass": len(report.cases) - options, "fail": 0, "refused": 0, "not run": options}
    assert report.counts() == right, str(report)


@pytest.mark.slow
def test_the_root_of_the_scale_in_single_precision_is_named_in_onnx_s_double(clients):
    pytest.importorskip("onnx", reason="needs the extra 'test'")
    report = check(clients["ONNX reference, Attention"], "float64", only=["d = 64", "scale given", "n = 16"])
    assert {case.case for case in report.failures} == {"causal, d = 64", "scale given"}
    assert [cause.name for cause in report.causes] == ["scale in a coarser precision"]


def test_every_client_is_said_how_it_is_installed_and_checked(clients):
    for client in clients.values():
        assert client.packages
        assert client.backward in (None, "autograd")
        assert client.spec in ("dense", "sparsek-operator")
