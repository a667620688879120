"""Kernels that go in tiles: right ones conform in every precision, and those wrong beyond the first tiles do not."""

import lengths
import numpy as np
import pytest
from tiled_kernel import Kernel

from refattn.testing import assert_conforms, check_attention
from refattn.testing.conformance.power import GARBAGE
from refattn.testing.conformance.precision import precision as precision_named

UNNAMED = None
FULL = ["tiles of 128", "logits rising along the keys", "logits falling along the keys"]
CAUSAL = ["tiles of 128, n = 383", "tiles of 128, n = 385", "n = 1000, last tile partial"]
LONG = ["n = 1000, last tile partial", "tiles of 512, n = 1536, full", "129 queries, 1537 keys"]
CROSSED = ["crossed"]

FORWARD = {
    "zeros from row 256 on": ("rows lost", FULL, {}),
    "last partial tile of queries lost": (UNNAMED, FULL, {}),
    "every fourth tile of queries lost": ("rows lost", FULL, {}),
    "third tile skipped": ("third tile of 64 keys skipped", FULL, {}),
    "last tile skipped": ("last tile of 64 keys skipped", FULL, {}),
    "last partial tile skipped": (UNNAMED, ["tiles of 64, n = 193, full", "tiles of 128, n = 385"], {}),
    "first tile skipped from row 256 on": ("wrong from a tile on", CAUSAL, {}),
    "not rescaled in the third tile": ("accumulator not rescaled in the third tile of 64", FULL, {}),
    "not rescaled in the last tile": (UNNAMED, FULL, {}),
    "sum not rescaled in the third tile": (UNNAMED, FULL, {}),
    "padded keys counted": ("last tile of 64 keys not masked", ["tiles of 64, n = 193, full", *FULL[1:]], {}),
    "third tile counted twice": ("third tile of 64 keys counted twice", FULL, {}),
    "last value of a full tile lost": (UNNAMED, FULL, {}),
    "values of the tile before from the fifth on": ("wrong from a tile on", CAUSAL, {}),
    "accumulator cleared every eight tiles": (UNNAMED, LONG, {}),
    "accumulator in bfloat16": ("wrong dtype", FULL, {}),
    "splits merged without weights": ("4 splits of the keys merged without their weights", FULL, {"splits": 4}),
    "last split lost": (UNNAMED, FULL, {"splits": 4}),
    "causal edge one late in tiles": (UNNAMED, CAUSAL, {}),
    "causal edge one early from row 128 on": ("wrong from a tile on", CAUSAL, {}),
    "diagonal tile counts as full": ("wrong from a tile on", CAUSAL, {}),
    "page swapped": (UNNAMED, FULL, {}),
    "address of 32 bits overflows": (UNNAMED, ["tiles of 512, n = 1537", "129 queries, 1537 keys"], {}),
    "address of keys overflows": ("wrong from a tile on", ["tiles of 256, n = 768", "tiles of 512, n = 1537"], {}),
    "heads swapped beyond 256": ("wrong from a tile on", FULL, {}),
    "rows of the third tile shifted": ("wrong from a tile on", FULL, {}),
    "last row of a tile overwritten": (UNNAMED, FULL, {}),
    "maximum starts at −5e4": ("maximum starts at −5·10⁴", CROSSED, {}),
    "mask of the first batch": ("mask of the first batch for all", CROSSED, {}),
    "mask of row length n_q": (UNNAMED, CROSSED, {}),
    "largest taken before a negative scale": (UNNAMED, CROSSED, {}),
    "strides ignored": (UNNAMED, CROSSED, {}),
    "scale written into q": (UNNAMED, CROSSED, {}),
}  # fmt: skip
BACKWARD = {
    "dq misses the last keys": ("dq without the last tile of 64 keys", FULL, {}),
    "dk and dv miss the last queries": ("dk and dv without the last tile of 64 queries", FULL, {}),
    "dq added twice on a tile's edge": (UNNAMED, FULL, {}),
    "lse of the last tile forgotten": (UNNAMED, FULL, {}),
    "delta lost in the last tile": (UNNAMED, FULL, {}),
    "dq and dk times 1.2": ("constant factor", FULL, {}),
}
MUTANTS = {**FORWARD, **BACKWARD}
COARSE = ("third tile skipped", "dq misses the last keys", "dq and dk times 1.2", "zeros from row 256 on")


def both(kernel):
    """The forward and the backward of a kernel of arrays in its dtype, which it holds in float32."""

    def held(*arrays):
        return [x.astype(np.float32) if kernel.dtype not in ("float32", "float64") else x for x in arrays]

    def forward(q, k, v, *, causal, scale, mask):
        return kernel(*held(q, k, v), causal=causal, scale=scale, mask=mask)

    def backward(dout, q, k, v, *, causal, scale, mask):
        return kernel.backward(*held(dout, q, k, v), causal=causal, scale=scale, mask=mask)

    return forward, backward


def check(kernel, backward=True, **options):
    """The report of a check; half precisions come as float32 that they hold."""
    forward, gradients = both(kernel)
    return check_attention(forward, "dense", backward=gradients if backward else None, dtype=kernel.dtype, **options)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_beyond_the_first_tiles_is_caught_and_most_are_named(name):
    cause, only, liberties = MUTANTS[name]
    report = check(Kernel(fault=name, **liberties), backward=name in BACKWARD, only=only)
    assert not report.passed
    if cause is not UNNAMED:
        assert report.causes, str(report)
        assert report.causes[0].name == cause, str(report)


def test_half_of_them_are_named():
    assert sum(cause is not UNNAMED for cause, _, _ in MUTANTS.values()) >= len(MUTANTS) / 2


@pytest.mark.parametrize("name", COARSE)
def test_bfloat16_catches_them_too(name):
    pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    _, only, _ = MUTANTS[name]
    assert not check(Kernel(fault=name, dtype="bfloat16"), only=only).passed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_scale_off_by_two_percent_is_caught_in_half_precision(dtype):
    pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    forward, _ = both(Kernel(dtype=dtype))
    report = check_attention(
        lambda q, k, v, *, causal, scale, mask: forward(q, k, v, causal=causal, scale=1.02 * scale, mask=mask),
        "dense", dtype=dtype, profile="quick",
    )  # fmt: skip
    assert [cause.name for cause in report.causes] == ["scale off"], str(report)


def in_halves(q, k, v, *, causal, scale, mask):
    """Attention of an array library's operations, each of which rounds to bfloat16."""
    to = precision_named("bfloat16").round
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    seen = np.tri(q.shape[-2], k.shape[-2], dtype=bool) if causal else np.ones((q.shape[-2], k.shape[-2]), bool)
    logits = np.where(seen if mask is None else seen & mask, to(to(q @ k.swapaxes(-1, -2)) * scale), -np.inf)
    weights = np.exp(to(logits - np.maximum(logits.max(axis=-1, keepdims=True), -1e30)))
    total = to(weights.sum(axis=-1, keepdims=True))
    return to(to(to(weights) / np.where(total > 0, total, 1)) @ v)


def test_intermediates_in_half_precision_are_named_and_excused_where_said():
    pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    report = check_attention(in_halves, "dense", dtype="bfloat16", profile="quick")
    assert report.causes[0].name == "intermediates in half precision"
    assert_conforms(in_halves, "dense", dtype="bfloat16", accumulate="dtype", profile="quick")


def test_products_that_overflow_before_the_scale_are_named():
    def halved(q, k, v, *, causal, scale, mask):
        q, k, v = (x.astype(np.float32) for x in (q, k, v))
        k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
        seen = np.tri(q.shape[-2], k.shape[-2], dtype=bool) if causal else np.ones((q.shape[-2], k.shape[-2]), bool)
        with np.errstate(over="ignore", invalid="ignore"):
            products = (q @ k.swapaxes(-1, -2)).astype(np.float16).astype(np.float32)
            logits = np.where(seen if mask is None else seen & mask, products * scale, -np.inf)
            weights = np.exp(logits - np.maximum(logits.max(axis=-1, keepdims=True), -1e30))
            total = weights.sum(axis=-1, keepdims=True)
            return weights / np.where(total > 0, total, 1) @ v

    report = check_attention(halved, "dense", dtype="float16", only="logits of 10⁴")
    assert report.causes[0].name == "products overflow before the scale"


RIGHT = {
    "tiles of 64": Kernel(dtype="bfloat16"),
    "tiles of 128, base 2": Kernel(128, "bfloat16", 128, base2=True),
    "scaled first, 4 splits": Kernel(64, "bfloat16", scale_first=True, splits=4),
    "weights in float32": Kernel(64, "bfloat16", round_weights=False),
    "float16, 2 splits": Kernel(64, "float16", splits=2),
    "float32, base 2": Kernel(128, "float32", base2=True),
    "float32, tiles of 16, 4 splits": Kernel(16, "float32", 16, splits=4),
    "float64": Kernel(32, "float64", 32),
}


def conforming(kernel, **options):
    if kernel.dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    forward, backward = both(kernel)
    assert_conforms(forward, "dense", backward=backward, dtype=kernel.dtype, **options)


@pytest.mark.parametrize("kernel", RIGHT.values(), ids=list(RIGHT))
def test_right_kernels_conform_whatever_liberties_they_take(kernel):
    conforming(kernel, profile="quick")


def test_weights_whose_variance_is_no_number_are_no_mistake():
    conforming(RIGHT["float64"], only="logits of 10⁴", seeds=4)  # rows of dk are of size 1e-262


@pytest.mark.long
@pytest.mark.parametrize("name", ["tiles of 128, base 2", *lengths.campaign("tiles of 64")])
def test_right_kernels_conform_in_every_case(name):
    conforming(RIGHT[name], seeds=1)


@pytest.mark.parametrize("precision", ["float8_e4m3", "float8_e5m2", "int8-keys"])
def test_what_multiplies_in_eight_bits_is_judged_by_an_emulation(precision):
    to = precision_named(precision)
    inner = Kernel(dtype="float32", round_weights=False)

    def quantised(q, k, v, **options):
        return to.result(inner(to.round(q), to.keys(k), to.round(v), **options))

    assert_conforms(quantised, "dense", precision=precision, profile="quick")
    assert not check_attention(quantised, "dense", profile="quick").passed
    wrong = check_attention(
        lambda *x, **o: np.roll(quantised(*x, **o), 1, -2), "dense", precision=precision, only="full"
    )
    assert not wrong.passed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_result_notices_what_it_should_or_says_why(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    report = check(Kernel(dtype=dtype), profile="quick")
    wanted = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    told = [power for case in report.cases for power in case.power]
    assert len(told) == 4 * report.counts()["pass"]
    assert all(power.half <= wanted or power.why for power in told)
    assert not [power for power in told if set(power.blind) & set(GARBAGE) and not power.why]
    assert sum(not power.why for power in told) > 0.8 * len(told)
    assert "power: half of the rows" in str(report)
