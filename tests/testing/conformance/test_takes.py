"""What a kernel takes: how it is said, and cases moved into it."""

import json

import pytest

from refattn.testing import check_attention
from refattn.testing.conformance.operation import Shape
from refattn.testing.conformance.registry import OPERATIONS
from refattn.testing.conformance.takes import merged, moved, parse

DENSE = OPERATIONS["dense"]
SAID = "n%128, d=64|128, batch=1, n<=512"


def test_a_text_a_mapping_and_a_file_say_the_same(tmp_path):
    mapping = {"n": {"multiple": 128, "most": 512}, "d": [64, 128], "batch": 1}
    (tmp_path / "takes.json").write_text(json.dumps(mapping), encoding="utf-8")
    (tmp_path / "takes.toml").write_text(
        'n = {multiple = 128, most = 512}\nd = "64|128"\nbatch = "1"', encoding="utf-8"
    )
    said = [SAID, mapping, json.dumps(mapping), str(tmp_path / "takes.json"), str(tmp_path / "takes.toml")]
    assert len({repr(parse(one, DENSE)) for one in said}) == 1


@pytest.mark.parametrize(
    ("said", "size", "nearest"),
    [
        ("n%64", 1, 64),
        ("n%64", 95, 64),
        ("n%64", 96, 128),
        ("n%64, n<=200", 1000, 192),
        ("n=64..100", 7, 64),
        ("n=64..100", 1000, 100),
        ("n>=33", 2, 33),
        ("n=16|48", 32, 48),
        ("n%64, n>=100", 1, 128),
    ],
)
def test_the_nearest_size_is_taken(said, size, nearest):
    sizes = parse(said, DENSE).of("n")
    assert sizes.nearest(size) == nearest
    assert nearest in sizes


def test_equal_lengths_and_widths_stay_equal_and_groups_stay_groups():
    takes = parse("n%128, d=64|128, heads=8, kv_heads=1|2|8, batch=1|4", DENSE)
    assert takes.nearest(Shape(33, heads=4, kv_heads=2, batch=2)) == Shape(128, d=64, heads=8, kv_heads=2, batch=1)
    assert takes.nearest(Shape(33, heads=2)) == Shape(128, d=64, heads=8, kv_heads=8)
    assert takes.nearest(Shape(19, 300, d=128, d_v=64)).d_v == 64
    assert takes.nearest(Shape(19, 300)).n_k == 256


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_case_is_at_what_is_taken_or_says_why_not(operation):
    said = "n=64, batch=2" if operation.name.startswith("sparsek-") else "n=64, d=32, batch=2, heads=4, kv_heads=2"
    takes = parse(said, operation)
    there = [moved(case, takes) for case in operation.cases if case.profile == "quick"]
    cases = [case for case in there if not isinstance(case, str)]
    assert all(case.shape in takes for case in cases)
    assert all(case.build(case.n, 0).arrays[next(iter(operation.axes))].shape[0] == 2 for case in cases)
    assert {x for x in there if isinstance(x, str)} <= {
        "its d = 64, d_v = 64, batch = 1, heads = 3, kv_heads = 1 cannot be changed"
    }


def test_a_kernel_of_one_shape_gets_every_content_at_that_shape(kernels):
    def fixed(q, k, v, *, causal, scale, mask):
        assert q.shape == (2, 4, 64, 32)
        assert k.shape == v.shape == (2, 2, 64, 32)
        return kernels.attention(q, k, v, causal=causal, scale=scale, mask=mask)

    report = check_attention(fixed, "dense", takes="n=64, d=32, batch=2, heads=4, kv_heads=2", profile="quick")
    assert report.passed
    counts = report.counts()
    assert counts["refused"] == counts["fail"] == 0
    not_run = [case.kind for case in report.cases if case.verdict == "not run" and case.kind != "option"]
    assert not_run == ["real"] * 5  # they have another shape
    assert counts["pass"] >= 20
    assert any("causal, n = 2, causal, n = 3" in note for note in report.notes)
    assert {c.case.partition(" [")[0] for c in report.cases} >= {"logits of 10⁴", "one-hot, logits 0 and 30"}


def test_what_fails_is_made_smaller_only_to_what_is_taken(kernels):
    def wrong(q, k, v, **options):
        assert q.shape[-2] % 16 == 0
        out = kernels.attention(q, k, v, **options)
        out[..., 48:, :] *= 1.01
        return out

    report = check_attention(wrong, "dense", takes="n%16", profile="quick")
    assert report.shrunk.n == 64
    assert report.counts()["refused"] == 0


def test_cases_of_other_contents_or_layouts_stay_apart():
    takes = parse("n=32, d=16, batch=1, heads=2, kv_heads=2, layouts=rows", DENSE)
    cases, said = merged(x for x in (moved(c, takes) for c in DENSE.cases) if not isinstance(x, str))
    assert {case.memory for case in cases} == {"rows"}
    assert len({(case.content, case.shape, case.asks, case.own_tags) for case in cases}) == len(cases)
    assert all("one case, at what is taken: " in text for text in said)


@pytest.mark.parametrize(
    ("takes", "told"),
    [
        ("q=3", "takes: 'q' came, one of n, n_k, d"),
        ("n%0", "takes: n: '%0' came"),
        ("n~3", "takes: 'n~3' came, something like"),
        ("n=64..", "takes: n: '=64..' came"),
        ({"n": 0}, "takes: n: 0 came"),
        ({"n": True}, "takes: n: True came"),
        ({"n": []}, r"takes: n: \[\] came"),
        ({"n": {"step": 3}}, "takes: n: {'step': 3} came"),
        ("n%64, n<=32", "takes: no n is taken: multiples of 64 and at most 32"),
        ("n=64..32", "takes: no n is taken"),
        ("heads=3, kv_heads=2", "takes: no kv_heads .one of 2. divides heads .one of 3."),
        ("dtypes=int8", "takes: dtypes"),
        ("layouts=BNHD", "takes: layouts"),
        ("dtypes=float16|bfloat16", "dtype: float32 came, which is not among"),
        ("{broken", "cannot be read"),
        ("nowhere.toml", "cannot be read"),
        ("d=32", "takes: no case is left: not taken: its d = 64, d_v = 64 cannot be changed"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_reason(takes, told, kernels):
    only = "real" if takes == "d=32" else ()
    with pytest.raises(ValueError, match=told):
        check_attention(kernels.attention, "dense", takes=takes, only=only)


def test_an_operation_has_the_sizes_it_has():
    with pytest.raises(ValueError, match="takes: 'd' came, one of n, batch"):
        parse("d=64", OPERATIONS["sparsek-operator"])
    with pytest.raises(TypeError, match="takes: int came"):
        parse(3, DENSE)


def test_inputs_that_a_dtype_cannot_hold_at_the_shape_taken_are_not_run():
    report = check_attention(
        lambda q, k, v, **options: q, "dense", dtype="float16", takes="d=64", only="one-hot, logits 0 and 10⁴"
    )
    assert report.cases[0].reason == "q has numbers beyond the largest of float16"
    assert report.counts()["not run"] == 1
