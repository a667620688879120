"""Other people's attention behind the check's signature: a few lines each, and what each takes and lacks.

A function of `CLIENTS` imports its library when it is called. `tests/clients/table.py` makes the table of
`docs/explanation/real-clients.md` of them; what is installed for the other tests is checked with them.
"""

import importlib.util
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Client:
    """Somebody's implementation, and how it is checked."""

    name: str
    packages: tuple[str, ...]  # as they are installed; the first is whose it is
    load: Callable[[], Callable[..., Any]]
    dtypes: tuple[str, ...] = ("float32",)
    backward: str | None = "autograd"
    spec: str = "dense"
    options: dict[str, Any] = field(default_factory=dict)  # of `check_attention`
    environment: dict[str, str] = field(default_factory=dict)


def as_four(mask, q, k):
    """A mask with the axes (B, H, n_q, n_k)."""
    return mask if mask is None or mask.ndim == 4 else mask[None, None]


def torch_sdpa(backend=None):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attention(q, k, v, *, causal, scale, mask):
        mask = mask.tril() if mask is not None and causal else mask
        backends = list(SDPBackend.__members__.values())[1:] if backend is None else SDPBackend.__members__[backend]
        with sdpa_kernel(backends):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )  # fmt: skip

    return attention


def torch_flex():
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    def attention(q, k, v, *, causal, scale, mask):
        seen = None if mask is None else as_four(mask, q, k).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])

        def changed(score, b, h, i, j):
            score = score if seen is None else torch.where(seen[b, h, i, j], score, -torch.inf)
            return torch.where(i >= j, score, -torch.inf) if causal else score

        return flex_attention(q, k, v, score_mod=changed, scale=scale, enable_gqa=q.shape[1] != k.shape[1])

    return attention


def jax_nn():
    import jax

    def attention(q, k, v, *, causal, scale, mask):
        return jax.nn.dot_product_attention(q, k, v, mask=as_four(mask, q, k), is_causal=causal, scale=scale)

    return attention


def flax_linen():
    import flax.linen
    import jax.numpy as jnp

    def attention(q, k, v, *, causal, scale, mask):
        mask = as_four(mask, q, k)
        if causal:
            lower = jnp.tri(q.shape[1], k.shape[1], dtype=bool)[None, None]
            mask = lower if mask is None else mask & lower
        return flax.linen.dot_product_attention(q * (scale * q.shape[-1] ** 0.5), k, v, mask=mask)

    return attention


def pallas():
    from jax.experimental.pallas.ops.gpu import attention as theirs

    names = ("block_q", "block_k", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    blocks = theirs.BlockSizes(**dict.fromkeys(names, 32))

    def attention(q, k, v, *, causal, scale):
        return theirs.mha(q, k, v, None, sm_scale=scale, causal=causal, block_sizes=blocks, interpret=True)

    return attention


@cache
def onnx_model(causal, scale, masked, dtype):
    from onnx import TensorProto, helper

    def value(name, kind):
        return helper.make_tensor_value_info(name, kind, [None] * 4)

    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE,
            "bfloat16": TensorProto.BFLOAT16}[dtype]  # fmt: skip
    names = ["q", "k", "v", "mask"][: 4 if masked else 3]
    node = helper.make_node("Attention", names, ["out"], is_causal=int(causal), scale=scale)
    inputs = [value(name, TensorProto.BOOL if name == "mask" else kind) for name in names]
    graph = helper.make_graph([node], "attention", inputs, [value("out", kind)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def onnx_inputs(q, k, v, mask):
    arrays = {"q": q, "k": k, "v": v}
    return arrays if mask is None else {**arrays, "mask": np.ascontiguousarray(as_four(mask, q, k))}


def onnx_reference():
    from onnx.reference import ReferenceEvaluator

    def attention(q, k, v, *, causal, scale, mask):
        model = onnx_model(causal, float(scale), mask is not None, q.dtype.name)
        return ReferenceEvaluator(model).run(None, onnx_inputs(q, k, v, mask))[0]

    return attention


def onnx_runtime():
    import onnxruntime

    @cache
    def session(*key):
        return onnxruntime.InferenceSession(onnx_model(*key).SerializeToString(), providers=["CPUExecutionProvider"])

    def attention(q, k, v, *, causal, scale, mask):
        run = session(causal, float(scale), mask is not None, q.dtype.name).run
        return run(None, onnx_inputs(q, k, v, mask))[0]

    return attention


def tiny():
    from tinygrad import Tensor

    def attention(q, k, v, *, causal, scale, mask):
        q, k, v = (Tensor(x) for x in (q * np.float32(scale * q.shape[-1] ** 0.5), k, v))
        if mask is not None:
            mask = Tensor(np.ascontiguousarray(mask & np.tri(*mask.shape[-2:], dtype=bool) if causal else mask))
        return q.scaled_dot_product_attention(
            k, v, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=q.shape[1] != k.shape[1]
        ).numpy()

    return attention


def keras_ops():
    import keras

    def attention(q, k, v, *, causal, scale, mask):
        return keras.ops.dot_product_attention(q, k, v, mask=as_four(mask, q, k), scale=scale, is_causal=causal)

    return attention


def mlx_fast():
    import mlx.core as mx

    def attention(q, k, v, *, causal, scale, mask):
        if mask is not None:
            mask = mx.array(np.ascontiguousarray(mask & np.tri(*mask.shape[-2:], dtype=bool) if causal else mask))
        q, k, v = (mx.array(x) for x in (q, k, v))
        mask = "causal" if mask is None and causal else mask
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    return attention


def openvino_sdpa(precision=None):
    import openvino
    from openvino import opset13

    core = openvino.Core()

    @cache
    def compiled(masked, causal):
        names = ["q", "k", "v"]
        inputs = [opset13.parameter([-1] * 4, np.float32, name=name) for name in names]
        if masked:
            inputs.append(opset13.parameter([-1] * 4, np.dtype(bool), name="mask"))
        scale = opset13.parameter([], np.float32, name="scale")
        mask = inputs[3] if masked else opset13.constant(np.ones((1, 1, 1, 1), bool))
        node = opset13.scaled_dot_product_attention(*inputs[:3], mask, scale, causal=causal)
        config = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        return core.compile_model(openvino.Model([node], [*inputs, scale], "attention"), "CPU", config)

    def attention(q, k, v, *, causal, scale, mask):
        group = q.shape[1] // k.shape[1]
        k, v = (np.repeat(x, group, axis=1) for x in (k, v))
        given = [q, k, v]
        if mask is not None:
            mask = as_four(mask, q, k)
            given.append(np.ascontiguousarray(mask & np.tri(*mask.shape[-2:], dtype=bool) if causal else mask))
        model = compiled(mask is not None, causal and mask is None)
        return next(iter(model([*given, np.float32(scale)]).values()))

    return attention


def triton_page():
    """The kernel of the page on checking a kernel, which Triton reads from a file."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "check-your-kernel.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"Save as `mytriton.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    file = Path(tempfile.mkdtemp(prefix="refattn-client-")) / "mytriton.py"
    file.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mytriton", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.attention


def entmax_budget():
    import entmax

    def operator(z, *, k):
        return entmax.budget_bisect(z, budget=k, dim=-1)

    return operator


def jaxopt_box():
    import jax
    import jax.numpy as jnp
    from jaxopt.projection import projection_box_section

    def operator(z, *, k):
        zero, one = jnp.zeros_like(z[0]), jnp.ones_like(z[0])
        total = jnp.minimum(jnp.asarray(k, z.dtype), z.shape[-1])
        return jax.vmap(lambda row: projection_box_section(row, (zero, one, one, total)))(z)

    return operator


TORCH = ("float32", "float64", "bfloat16", "float16")
CPU = {"JAX_PLATFORMS": "cpu"}
X64 = {"JAX_ENABLE_X64": "1", **CPU}
ON_ANY_DEVICE = ("JAX_ENABLE_X64", "KERAS_BACKEND")
OF_TORCH: dict[str, Any] = {"arrays": "torch"}
OF_JAX: dict[str, Any] = {"arrays": "jax", "adapter": "(B, N, H, D)"}
IN_TILES: dict[str, Any] = {"accumulate": "tiles"}  # gradients of half precision are rounded after every tile
IN_THE_DTYPE: dict[str, Any] = {"accumulate": "dtype"}  # put together from operations that round

CLIENTS = (
    Client("PyTorch SDPA, default", ("torch",), torch_sdpa, TORCH, options=OF_TORCH | IN_TILES),
    Client("PyTorch SDPA, math", ("torch",), lambda: torch_sdpa("MATH"), TORCH, options=OF_TORCH),
    Client(
        "PyTorch SDPA, flash", ("torch",), lambda: torch_sdpa("FLASH_ATTENTION"), TORCH, options=OF_TORCH | IN_TILES
    ),
    Client("PyTorch FlexAttention, eager", ("torch",), torch_flex, TORCH, None, options=OF_TORCH),  # no CPU backward
    Client(
        "JAX nn.dot_product_attention", ("jax",), jax_nn, ("float32", "bfloat16", "float16", "float64"),
        options=OF_JAX | {"empty_rows": "mean"}, environment=X64,
    ),
    Client("flax.linen.dot_product_attention", ("flax", "jax"), flax_linen, options=OF_JAX | {
        "empty_rows": "mean", "without": ["grouped"]}, environment=X64),
    Client("Pallas GPU attention, interpreted", ("jax",), pallas, environment=CPU, options=OF_JAX | {
        "takes": "n%32, d=16|32|64", "without": ["rectangular"]}),
    Client("ONNX reference, Attention", ("onnx",), onnx_reference, ("float32", "float16", "bfloat16", "float64"), None,
           options=IN_THE_DTYPE),
    Client("ONNX Runtime, Attention", ("onnxruntime", "onnx"), onnx_runtime, ("float32", "float16", "float64"), None,
           options=IN_THE_DTYPE),
    Client("tinygrad", ("tinygrad",), tiny, backward=None, options={"empty_rows": "nan"},
           environment={"DEV": "CPU"}),
    Client(
        "Keras ops on PyTorch", ("keras", "torch"), keras_ops, ("float32", "bfloat16"),
        options=OF_TORCH | IN_TILES | {"adapter": "(B, N, H, D)", "empty_rows": "mean"},
        environment={"KERAS_BACKEND": "torch"},
    ),
    Client("MLX fast, CPU", ("mlx",), mlx_fast, ("float32", "float16"), None,
           options=IN_THE_DTYPE | {"empty_rows": "mean"}),
    Client("OpenVINO SDPA, default", ("openvino",), openvino_sdpa, backward=None, options={"empty_rows": "nan"}),
    Client("OpenVINO SDPA, float32 asked for", ("openvino",), lambda: openvino_sdpa("f32"), backward=None,
           options={"empty_rows": "nan"}),
    Client("Triton, the page's kernel", ("triton", "torch"), triton_page, ("float32", "float16", "bfloat16"), None,
           options=OF_TORCH | {"takes": "n%64, n<=256, d=64", "without": ["grouped", "rectangular", "mask"]},
           environment={"TRITON_INTERPRET": "1"}),
    Client("entmax budget_bisect", ("entmax", "torch"), entmax_budget, ("float32", "float64"),
           spec="sparsek-operator", options=OF_TORCH),
    Client("jaxopt projection_box_section", ("jaxopt", "jax"), jaxopt_box, ("float32", "float64"),
           spec="sparsek-operator", options={"arrays": "jax"}, environment=X64),
)  # fmt: skip


def environment(client: Client, device: str | None = None) -> dict[str, str]:
    """The environment in which a client is imported: settings that keep it on the processor only where it is to be."""
    own = client.environment if device is None else {x: y for x, y in client.environment.items() if x in ON_ANY_DEVICE}
    return {**os.environ, **own}
