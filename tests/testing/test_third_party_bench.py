"""The benchmark for somebody else's implementation, on a toy package made here."""

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "asv_benchmarks" / "benchmarks" / "third_party.py"
KERNEL = """
import numpy as np

def attention(q, k, v, *, causal, scale):
    logits = np.where(np.tri(q.shape[-2], dtype=bool), q @ k.swapaxes(-1, -2) * scale, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An installed package `toyattention` with an entry point."""
    (tmp_path / "toyattention").mkdir()
    (tmp_path / "toyattention" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "toyattention" / "kernels.py").write_text(KERNEL, encoding="utf-8")
    info = tmp_path / "toyattention-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toyattention\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[refattn.benchmarks]\ntoy = toyattention.kernels:attention\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("toyattention", "toyattention.kernels"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def benchmark():
    spec = importlib.util.spec_from_file_location("third_party", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def errors(module):
    """What asv would do: set up, run and tear down every implementation at the smallest n."""
    lengths, names = module.ThirdParty.params
    found = {}
    for name in names:
        one = module.ThirdParty()
        one.setup(lengths[0], name)
        try:
            one.time_forward(lengths[0], name)
            one.peakmem_forward(lengths[0], name)
            found[name] = one.track_error(lengths[0], name)
        finally:
            one.teardown(lengths[0], name)
    return found


def test_an_entry_point_is_a_curve_beside_ours(toy):
    found = errors(benchmark())
    assert set(found) == {"refattn", "toy"}
    assert max(found.values()) < 1e-5


def test_an_environment_variable_names_an_implementation(toy, monkeypatch):
    monkeypatch.setenv("REFATTN_BENCH", "toyattention.kernels:attention")
    assert errors(benchmark())["toyattention.kernels:attention"] < 1e-5


def test_tensors_of_another_library_are_handed_over_where_asked_for(toy, monkeypatch, tmp_path):
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    source = "from torch.nn.functional import scaled_dot_product_attention as sdpa\n\n"
    source += "def attention(q, k, v, *, causal, scale):\n    return sdpa(q, k, v, is_causal=causal, scale=scale)\n"
    (tmp_path / "toyattention" / "kernels.py").write_text(source, encoding="utf-8")
    monkeypatch.setenv("REFATTN_BENCH_ARRAYS", "torch")
    assert errors(benchmark())["toy"] < 1e-5


def test_without_either_only_ours_runs():
    assert benchmark().ThirdParty.params[1] == ["refattn"]
