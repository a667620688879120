"""What is computed in: integers and float16 are promoted and say so; arrays of other libraries are read."""

import warnings

import numpy as np
import pytest

from refattn import (
    PromotionWarning,
    SlidingWindow,
    dense_attention,
    dense_attention_backward,
    dense_attention_forward,
)

Q, K, V = np.random.default_rng(0).standard_normal((3, 5, 4))


class OnlyDLPack:
    """An array of a library that speaks DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


KINDS = {
    "int8": (np.int8, np.float64),
    "int64": (np.int64, np.float64),
    "uint16": (np.uint16, np.float64),
    "float16": (np.float16, np.float32),
}


def promotions(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    assert all(w.category is PromotionWarning for w in caught)
    return result, caught


@pytest.mark.parametrize(("came", "computed"), KINDS.values(), ids=list(KINDS))
def test_integers_and_float16_are_promoted_and_say_so(came, computed):
    q = np.array([[1, 2], [3, 4]])
    out, caught = promotions(lambda: dense_attention(q.astype(came), q.astype(came), q.astype(came)))
    assert out.dtype == computed
    assert np.array_equal(out, dense_attention(*[q.astype(computed)] * 3))
    wanted = f"{np.dtype(came)} was promoted; the computation and the result are {np.dtype(computed)}"
    assert [str(w.message) for w in caught] == [f"{name}: {wanted}" for name in "qkv"]


@pytest.mark.parametrize(
    ("others", "result"), [(np.float32, np.float32), (np.float64, np.float64), (np.int64, np.float64)], ids=str
)
def test_the_promotion_names_the_dtype_of_the_result(others, result):
    k = np.ones((2, 2), others)
    out, caught = promotions(lambda: dense_attention(np.ones((2, 2), np.float16), k, k))
    assert out.dtype == result
    assert str(caught[0].message) == f"q: float16 was promoted; the computation and the result are {np.dtype(result)}"


def test_the_promotion_warning_points_at_the_callers_line():
    whole = np.array([[1, 2], [3, 4]])
    _, cache = dense_attention_forward(*[whole.astype(float)] * 3)
    for call in (
        lambda: dense_attention(whole, whole, whole),
        lambda: dense_attention_forward(whole, whole, whole),
        lambda: dense_attention_backward(whole, cache),
    ):
        _, caught = promotions(call)
        assert caught
        assert {(w.filename, w.lineno) for w in caught} == {(__file__, call.__code__.co_firstlineno)}


@pytest.mark.parametrize("dtypes", [("f4", "f4", "f4"), ("f8", "f4", "f4"), ("f4", "f4", "f8")], ids="-".join)
def test_float64_wins_and_float32_stays(dtypes):
    out = dense_attention(*(a.astype(dtype) for a, dtype in zip((Q, K, V), dtypes, strict=True)))
    assert out.dtype == max(map(np.dtype, dtypes), key=lambda d: d.itemsize)


@pytest.mark.parametrize("scalar", [2, np.float32(2), np.int8(2), np.array(2.0)], ids=lambda s: type(s).__name__)
def test_real_scalars_of_any_kind_are_numbers(scalar):
    expected = dense_attention(Q, K, V, scale=2.0, softcap=2.0)
    assert np.array_equal(dense_attention(Q, K, V, scale=scalar, softcap=scalar), expected)


def test_numpy_integers_are_counts():
    mask = SlidingWindow(np.int32(2), sinks=np.uint8(1), alignment=np.int64(0))
    out = dense_attention(Q, K, V, mask=mask, block=np.int16(2))
    assert np.array_equal(out, dense_attention(Q, K, V, mask=SlidingWindow(2, sinks=1), block=2))


def test_an_object_with_dlpack_only_is_read():
    assert np.array_equal(dense_attention(*map(OnlyDLPack, (Q, K, V))), dense_attention(Q, K, V))


def test_array_subclasses_come_back_as_plain_arrays():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        out = dense_attention(np.asmatrix(Q), K, V)
    assert type(out) is np.ndarray


def test_pytorch_tensors_are_read_and_numpy_comes_back():
    torch = pytest.importorskip("torch")
    out = dense_attention(*map(torch.from_numpy, (Q, K, V)), mask=torch.ones(5, 5, dtype=torch.bool).tril())
    assert type(out) is np.ndarray
    assert np.array_equal(out, dense_attention(Q, K, V))
    assert np.array_equal(dense_attention(Q, K, V, scale=torch.tensor(2.0)), dense_attention(Q, K, V, scale=2.0))


@pytest.mark.parametrize("name", ["q", "mask"])
@pytest.mark.parametrize("kind", ["requires_grad", "bfloat16", "meta", "sparse"])
def test_pytorch_tensors_that_numpy_cannot_read_are_refused_by_name(kind, name):
    torch = pytest.importorskip("torch")
    tensor = {
        "requires_grad": lambda: torch.zeros(5, 5, requires_grad=True),
        "bfloat16": lambda: torch.zeros(5, 5, dtype=torch.bfloat16),
        "meta": lambda: torch.zeros(5, 5, device="meta"),
        "sparse": lambda: torch.eye(5).to_sparse(),
    }[kind]()
    with pytest.raises(TypeError, match=f"^{name}: a Tensor came that cannot be read as a NumPy array on the CPU"):
        dense_attention(**{"q": Q, "k": K, "v": V, name: tensor})
