"""What the fuzzers found, one test each: things of the wrong kind, absurd sizes, headers that are no Python literal."""

import json

import numpy as np
import pytest

from refattn import conv_attention_backward, lowrank_attention_backward, sparsek_attention_backward
from refattn._npz import read_arrays, write_arrays
from refattn.convbasis import (
    ConvBasis,
    choose_plan,
    closeness,
    conv_product,
    convolution_error,
    logit_residual,
    recover,
    recover_to_tolerance,
)
from refattn.decomposition import read_heads
from refattn.experiments.records import read_records
from refattn.lowrank import PolynomialFeatures, RowChangeMask, document_blocks, masked_product_backward, shifted_groups
from refattn.sparsek import sparsek_scores_backward
from refattn.testing import attention_inputs, check_gradients, relative_error, rope_structured, row_errors, tolerance

ONES = np.ones((3, 2))
SINGLE = ONES.astype(np.float32)
RAGGED = [[1], [2, 3]]


@pytest.mark.parametrize(
    "backward",
    [
        conv_attention_backward,
        lowrank_attention_backward,
        sparsek_attention_backward,
        masked_product_backward,
        sparsek_scores_backward,
    ],
    ids=lambda function: function.__name__,
)
def test_a_cache_of_another_kind_is_refused(backward):
    with pytest.raises(TypeError, match=r"^cache: dict came, a \w+Cache from \w+_forward was wanted"):
        backward(ONES, {})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: logit_residual(ONES, ONES, "basis"), "^basis: str came", id="a residual without a basis"),
        pytest.param(lambda: closeness(ONES, ONES, None, probe=1), "^basis: NoneType came", id="closeness without"),
        pytest.param(lambda: ConvBasis(RAGGED, ONES), "^starts: ", id="ragged starts"),
        pytest.param(lambda: RowChangeMask(RAGGED, [0], [1]), "^first: ", id="ragged positions"),
        pytest.param(lambda: document_blocks(RAGGED), "^lengths: ", id="ragged lengths"),
        pytest.param(lambda: document_blocks([2], causal=np.ones(2)), "^causal: ", id="flags that are arrays"),
        pytest.param(lambda: shifted_groups(4, 2, causal=None), "^causal: ", id="a flag that is nothing"),
        pytest.param(lambda: ConvBasis([0], [[1.0]]).exp_transform("far"), "^shift: ", id="a shift that is text"),
        pytest.param(lambda: choose_plan(0, 1, 1, "float32"), "^n: ", id="a plan for nothing"),
        pytest.param(lambda: choose_plan(8, 1, 1, {}), "^dtype: ", id="a plan in no dtype"),
        pytest.param(lambda: convolution_error(8, "float16", 1.0, 1.0), "^dtype: ", id="an error in half precision"),
        pytest.param(lambda: convolution_error(8, "float32", "x", 1.0), "^factors: ", id="an error of text"),
        pytest.param(lambda: recover_to_tolerance(1e200 * ONES, ONES, 0.1), "^q, k: ", id="squares that overflow"),
        pytest.param(
            lambda: recover(SINGLE, SINGLE, n_basis=1, probe=1, delta=0, scale=1e99), "^scale: ", id="a scale"
        ),
        pytest.param(lambda: tolerance([], "float32"), "^name: ", id="a tolerance without a name"),
        pytest.param(lambda: tolerance("rounding", 1j), "^dtype: ", id="a tolerance in no dtype"),
        pytest.param(lambda: row_errors({}, ONES), "^result: ", id="errors of a dictionary"),
        pytest.param(lambda: relative_error(ONES, 1j * ONES), "^reference: ", id="errors of complex numbers"),
        pytest.param(lambda: attention_inputs(2, 2, seed=0, lead=3), "^lead: ", id="axes that are a number"),
        pytest.param(lambda: attention_inputs(2**40, 2, seed=0), "^n, d: ", id="inputs that do not fit"),
        pytest.param(lambda: rope_structured(4, 2, starts=[], seed=0), "^starts: ", id="no starts"),
        pytest.param(lambda: rope_structured(4, 2, starts=1, seed="now"), "^seed: ", id="a seed that is text"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises((TypeError, ValueError, MemoryError), match=message):
        call()


@pytest.mark.parametrize(
    "wrong", [{"rtol": "small"}, {"step": 0}, {"inputs": [1.0]}, {"inputs": {"x": [1j]}}], ids=repr
)
def test_a_gradient_check_names_a_wrong_argument(wrong):
    arguments = {"inputs": {"x": np.ones(2)}, "rtol": 1e-6} | wrong
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(wrong))}"):
        check_gradients(lambda x: x, lambda g: {"x": g}, **arguments)


def test_a_degree_of_eight_bits_does_not_overflow():
    assert PolynomialFeatures(8, np.int8(3), 0.5).error == PolynomialFeatures(8, 3, 0.5).error


def test_a_rank_that_no_float_holds_is_refused_with_its_digits():
    with pytest.raises(MemoryError, match=r"^degree: 20 came with width 10+: rank 10\^\d+ "):
        PolynomialFeatures(10**30, 20, 0.5)


@pytest.mark.parametrize("method", ["fft", "direct"])
def test_every_column_of_a_product_has_its_own_size(method):
    product = conv_product([-2.0], [[-2e249, -4e-211]], method=method)
    np.testing.assert_allclose(product, [[4e249, 8e-211]], rtol=1e-14)


HEADERS = {
    "null byte": b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,\0), }",
    "open bracket": b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,, ((((",
    "no dictionary": b"(" * 50,
    "absurd shape": b"{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904,), }",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_no_array_is_one_clear_error(header, tmp_path):
    npy = tmp_path / "own.npy"
    npy.write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(16))
    with pytest.raises(ValueError, match=r"own\.npy"):
        read_heads(npy)
    npz = tmp_path / "arrays.npz"
    write_arrays(npz, {"x": np.zeros(2)})
    content = npz.read_bytes()
    at = content.index(b"{'descr'")
    npz.write_bytes(content[:at] + header[:100].ljust(100) + content[at + 100 :])
    with pytest.raises(ValueError, match=r"arrays\.npz: cannot be read"):
        read_arrays(npz, ("x",))


def test_a_field_whose_name_has_a_line_break_is_refused_in_one_line(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"schema": "refattn-records/1", "\nfield": 1}) + "\n")
    with pytest.raises(ValueError, match=r"line 1: fields '\\nfield'") as refused:
        read_records(path)
    assert "\n" not in str(refused.value)
