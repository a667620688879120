from __future__ import annotations

import importlib
import io
import json
import zipfile

import numpy as np
import pytest

from refattn.sparsek import SparseKCache, sparsek_attention
from refattn.testing import row_errors
from refattn.testing.real_heads import load_real_heads

OPTIONS = [
    pytest.param({"gate": gate, "hard": hard}, id=f"{gate}-{'hard' if hard else 'soft'}")
    for gate in ("kv", "k", "v", "none")
    for hard in (False, True)
]


def _inputs(seed, n, lead_q=(), lead_kv=(), d=4, d_v=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    arrays = {
        "q": rng.standard_normal((*lead_q, n, d)),
        "k": rng.standard_normal((*lead_kv, n, d)),
        "v": rng.standard_normal((*lead_kv, n, d_v)),
        "scores": 0.7 * rng.standard_normal((*lead_kv, n)),
    }
    return {name: array.astype(dtype) for name, array in arrays.items()}


def _token(inputs, t):
    return (*(inputs[name][..., t, :] for name in "qkv"), inputs["scores"][..., t])


def _steps(cache, inputs, start=0, stop=None):
    stop = inputs["q"].shape[-2] if stop is None else stop
    return np.stack([cache.step(*_token(inputs, t)) for t in range(start, stop)], axis=-2)


def _part(inputs, rows):
    return {name: array[..., rows] if name == "scores" else array[..., rows, :] for name, array in inputs.items()}


def _require_same_state(a, b):
    assert (a.position, a._largest, a._lead) == (b.position, b._largest, b._lead)
    for (name, left), right in zip(a._state.arrays().items(), b._state.arrays().values(), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


def _require_replay(inputs, n_select, window, rtol=1e-12, **options):
    """The checker: every step is a row of the training forward, and a prefill leaves the state of the steps."""
    right = sparsek_attention(**inputs, n_select=n_select, window=window, **options, method="paper")
    stepped, filled = (SparseKCache(n_select, window, **options) for _ in range(2))
    assert row_errors(_steps(stepped, inputs), right).max() <= rtol
    assert row_errors(filled.prefill(**inputs), right).max() <= rtol
    _require_same_state(stepped, filled)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("n_select", "window"), [(0, 0), (0, 3), (1, 0), (5, 0), (5, 3), (1, 1), (200, 4), (4, 200), (90, 30)]
)
def test_the_cache_replays_the_training_forward(n_select, window, options):
    _require_replay(_inputs(0, 120), n_select, window, **options)


SEQUENCES = {
    "rising": lambda rng, n: np.linspace(-3, 3, n),
    "falling": lambda rng, n: np.linspace(3, -3, n),
    "constant": lambda rng, n: np.full(n, 0.3),
    "tied": lambda rng, n: rng.choice([0.0, 0.37, 1.21], n),
    "heavy-tailed": lambda rng, n: rng.standard_cauchy(n),
    "drifting": lambda rng, n: rng.standard_normal(n) + 0.02 * np.arange(n),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_it_replays_scores_of_every_kind(kind):
    _require_replay(_inputs(1, 250) | {"scores": SEQUENCES[kind](np.random.default_rng(2), 250)}, 7, 5)


@pytest.mark.parametrize(("lead_q", "lead_kv"), [((2, 6), (2, 3)), ((4,), (1,)), ((2, 1), (2, 3)), ((), (3,))], ids=str)
def test_all_heads_step_at_once(lead_q, lead_kv):
    _require_replay(_inputs(3, 60, lead_q, lead_kv), 6, 4)


@pytest.mark.slow
def test_it_replays_heads_of_a_language_model():
    real = load_real_heads(dtype=np.float64)
    inputs = {name: getattr(real, name)[2:4, ..., :300, :] for name in ("q", "k", "v")}
    _require_replay(inputs | {"scores": -np.linalg.norm(inputs["k"], axis=-1)}, 24, 16, rtol=1e-10)


@pytest.mark.slow
def test_ten_thousand_steps_and_a_prefill_are_within_1e_10_of_the_training_forward():
    inputs = _inputs(4, 10_000, d=8, d_v=8)
    right = sparsek_attention(**inputs, n_select=64, window=32)
    stepped, filled = SparseKCache(64, 32), SparseKCache(64, 32)
    assert row_errors(_steps(stepped, inputs), right).max() <= 1e-10
    assert row_errors(filled.prefill(**inputs), right).max() <= 1e-10
    _require_same_state(stepped, filled)


@pytest.mark.slow
def test_a_prompt_in_parts_is_the_prompt():
    inputs = _inputs(5, 90, (4,), (2,))
    whole, parts = SparseKCache(7, 5), SparseKCache(7, 5)
    right = whole.prefill(**inputs)
    out = [parts.prefill(**_part(inputs, slice(0, 40))), _steps(parts, inputs, 40, 60)]
    out.append(parts.prefill(**_part(inputs, slice(60, 90))))
    assert row_errors(np.concatenate(out, axis=-2), right).max() <= 1e-12
    _require_same_state(whole, parts)


def test_float32_stays_float32():
    inputs = _inputs(6, 50, dtype=np.float32)
    cache = SparseKCache(6, 4)
    out = _steps(cache, inputs)
    assert out.dtype == np.float32
    assert row_errors(out, sparsek_attention(**inputs, n_select=6, window=4, method="oracle")).max() <= 2e-4


@pytest.mark.parametrize("options", [{"hard": True}, {"gate": "none"}, {}], ids=["hard", "no gates", "soft"])
def test_bytes_do_not_grow_with_the_position(options):
    inputs = _inputs(7, 40_000, d=2, d_v=2)
    sizes = []
    for n in (300, 40_000):
        cache = SparseKCache(16, 8, **options)
        cache.prefill(**_part(inputs, slice(0, n)))
        sizes.append(cache.nbytes)
    assert sizes[0] == sizes[1]


def test_equal_scores_are_the_exception_all_of_them_stay_in_the_support():
    inputs = _inputs(8, 2000, d=2, d_v=2) | {"scores": np.zeros(2000)}
    soft, hard = SparseKCache(16, 8), SparseKCache(16, 8, hard=True)
    soft.prefill(**inputs)
    hard.prefill(**inputs)
    assert soft._state.sizes.sum() == 1992
    assert soft.nbytes - hard.nbytes <= 8 * (2 * 1992 + 17)


def test_inputs_are_not_written_to():
    inputs = _inputs(9, 10)
    before = {name: array.copy() for name, array in inputs.items()}
    for array in inputs.values():
        array.flags.writeable = False
    cache = SparseKCache(2, 2)
    cache.prefill(**inputs)
    cache.step(*_token(inputs, 3))
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])


BAD_OPTIONS = [
    pytest.param({"n_select": -1}, ValueError, "n_select: -1 came", id="n_select negative"),
    pytest.param({"n_select": 2.5}, TypeError, r"n_select: 2\.5 came", id="n_select no integer"),
    pytest.param({"window": -1}, ValueError, "window: -1 came", id="window negative"),
    pytest.param({"gate": "vk"}, ValueError, "gate: 'vk' came, one of 'kv'", id="unknown gate"),
    pytest.param({"hard": 1}, TypeError, "hard: 1 came, True or False", id="hard no bool"),
    pytest.param({"scale": np.nan}, ValueError, "scale: nan came", id="scale NaN"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_by_name(change, error, message):
    with pytest.raises(error, match=message):
        SparseKCache(**{"n_select": 2, "window": 1, **change})


BAD_TOKENS = [
    pytest.param({0: np.full(4, np.nan)}, "q: nan", id="NaN query"),
    pytest.param({1: np.full(3, 1.0)}, "k: last axis 3 came", id="another width"),
    pytest.param({2: np.full(5, 1.0)}, "k, v: .* came, those of the first token", id="another width of values"),
    pytest.param({1: np.ones((2, 4)), 2: np.ones((2, 3)), 3: np.ones(2)}, "k, v: ", id="more heads"),
    pytest.param({3: np.inf}, "scores: inf", id="infinite score"),
    pytest.param({3: np.ones(2)}, "scores: shape", id="two scores"),
    pytest.param({0: 1.0}, "q: shape", id="no axis"),
    pytest.param({0: np.full(4, 1e200), 1: np.full(4, 1e200)}, "q, k: a logit of query 20 .* overflows", id="overflow"),
    pytest.param(
        {0: np.ones(4, "f4"), 1: np.ones(4, "f4"), 2: np.ones(3, "f4"), 3: np.float32(1)}, "k, v: ", id="dtype"
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_TOKENS)
def test_a_bad_token_is_refused_and_nothing_is_taken_in(change, message):
    inputs = _inputs(10, 30)
    right, cache = SparseKCache(3, 2), SparseKCache(3, 2)
    _steps(right, inputs)
    _steps(cache, inputs, 0, 20)
    with pytest.raises(ValueError, match=message):
        cache.step(*(change.get(place, array) for place, array in enumerate(_token(inputs, 20))))
    assert cache.position == 20
    _steps(cache, inputs, 20)
    _require_same_state(cache, right)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_saved_cache_continues_as_if_nothing_had_happened(tmp_path, options):
    inputs = _inputs(11, 80, (4,), (2,))
    for n_select, window, stop in ((6, 4, 40), (6, 4, 2), (0, 3, 40), (3, 0, 40)):
        cache = SparseKCache(n_select, window, scale=0.4, **options)
        cache.prefill(**_part(inputs, slice(0, stop)))
        cache.save(tmp_path / "cache.npz")
        loaded = SparseKCache.load(tmp_path / "cache.npz")
        _require_same_state(loaded, cache)
        np.testing.assert_array_equal(_steps(loaded, inputs, stop), _steps(cache, inputs, stop))
        _require_same_state(loaded, cache)


def test_a_failed_write_leaves_the_older_file(tmp_path, monkeypatch):
    cache = SparseKCache(3, 2)
    with pytest.raises(ValueError, match="save: the cache is empty"):
        cache.save(tmp_path / "cache.npz")
    cache.prefill(**_inputs(12, 20))
    cache.save(tmp_path / "cache.npz")
    before = (tmp_path / "cache.npz").read_bytes()
    monkeypatch.setattr(np.lib.format, "write_array", lambda file, *_, **__: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        cache.save(tmp_path / "cache.npz")
    assert (tmp_path / "cache.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["cache.npz"]
    with pytest.raises(FileNotFoundError):
        SparseKCache.load(tmp_path / "none.npz")


def _npz(arrays, compressed=False):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def _with(**changes):
    def tamper(content):
        with np.load(io.BytesIO(content)) as stored:
            arrays = dict(stored)
        for name, change in changes.items():
            if name in arrays:
                arrays[name] = change(arrays[name].copy())
            else:
                arrays[name] = change
        return _npz(arrays)

    return tamper


def _about(**changes):
    def change(text):
        about = json.loads(text.tobytes()) | changes
        return np.frombuffer(json.dumps(about).encode(), np.uint8)

    return _with(about=change)


def _header(shape):
    """An archive whose `keys` claims `shape` and brings eight bytes."""

    def tamper(content):
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
            for name in old.namelist():
                part = old.read(name)
                if name == "keys.npy":
                    fake = io.BytesIO()
                    np.lib.format.write_array_header_1_0(fake, {"descr": "<f8", "fortran_order": False, "shape": shape})
                    part = fake.getvalue() + bytes(8)
                new.writestr(name, part)
        return stream.getvalue()

    return tamper


def _set(place, value):
    def change(array):
        array[place] = value
        return array

    return change


TAMPERED = {
    "empty": lambda content: b"",
    "not an archive": lambda content: b"refattn" * 100,
    "truncated": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "a bit flipped": lambda content: content[:700] + bytes([content[700] ^ 1]) + content[701:],
    "compressed": lambda content: _npz(dict(np.load(io.BytesIO(content))), compressed=True),
    "an array missing": lambda content: _npz({"about": np.zeros(1, np.uint8)}),
    "an array more": _with(extra=np.zeros(1)),
    "pickled": _with(keys=lambda array: np.array([{"a": 1}, None], object)),
    "a header of 2⁶² entries": _header((1, 1 << 31, 1 << 31)),
    "a header of negative entries": _header((1, -8, -8)),
    "a header of no entries, huge axes": _header((0, 1 << 62, 1 << 62)),
    "no JSON": _with(about=lambda text: text[:-3]),
    "deeply nested JSON": _with(about=lambda text: np.full(100_000, ord("["), np.uint8)),
    "another format": _about(format="refattn-sparsek-cache/0"),
    "an unknown option": _about(colour="red"),
    "another n_select": _about(n_select=4),
    "another window": _about(window=0),
    "another gate": _about(gate="none"),
    "another kind of gate": _about(gate=["k"]),
    "more heads": _about(lead=[2]),
    "a huge position": _about(position=1 << 80),
    "an early position": _about(position=3),
    "a NaN size": _about(largest=float("nan")),
    "text for a size": _about(largest="big"),
    "other widths": _with(keys=lambda array: array[:, :-1]),
    "another dtype": _with(values=lambda array: array.astype(np.float32)),
    "whole numbers": _with(keys=lambda array: array.astype(np.int64)),
    "NaN keys": _with(keys=_set((0, 0, 0), np.nan)),
    "larger keys than it says": _with(keys=_set((0, 0, 0), 1e9)),
    "a slot out of range": _with(heap=_set((0, 0), 1 << 40)),
    "a slot twice": _with(heap=lambda array: 0 * array),
    "a pair twice": _with(slot_positions=lambda array: 0 * array),
    "a pair of the future": _with(slot_positions=_set((0, 0), 39)),
    "a heap out of order": _with(heap=lambda array: array[:, ::-1]),
    "too many slots": _with(used=_set(0, 1000)),
    "too many scores": _with(sizes=_set((0, 1), 10_000)),
    "a negative number of scores": _with(sizes=_set((0, 0), -1)),
    "scores out of order": _with(interior=_set((0, 0), 100.0)),
    "a NaN threshold": _with(sums=_set((0, 0), np.nan)),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_file_that_is_no_cache_is_refused_by_name(tmp_path, kind):
    cache = SparseKCache(5, 3)
    cache.prefill(**_inputs(13, 40))
    cache.save(tmp_path / "whole.npz")
    (tmp_path / "odd.npz").write_bytes(TAMPERED[kind]((tmp_path / "whole.npz").read_bytes()))
    with pytest.raises(ValueError, match=r"odd\.npz: "):
        SparseKCache.load(tmp_path / "odd.npz")


MUTANTS = [
    ("ties to the later position", "positions[a] > positions[b]", "positions[a] < positions[b]"),
    ("the worst kept", "score <= scores[heap[0]]", "score > scores[heap[0]]"),
    ("the ring off by one", "row = n_select + position % window", "row = n_select + (position + 1) % window"),
    ("the threshold not raised", "tau[0] = candidate", "tau[0] = -np.inf"),
    ("a key not moved", "copy_row(keys[h, row] if window > 0 else k[h], keys[h, slot])", "pass"),
    ("admitted a step early", "if position >= window:", "if position >= window - 1:"),
]


@pytest.mark.parametrize(("right", "wrong"), [pytest.param(*m[1:], id=m[0]) for m in MUTANTS])
def test_an_error_planted_in_the_cache_is_caught(plant, monkeypatch, right, wrong):
    scores = np.random.default_rng(14).choice([0.0, 0.37, 1.21], 60)
    inputs = _inputs(14, 60) | {"scores": scores}
    _require_replay(inputs, 5, 3)
    original = importlib.import_module("refattn.sparsek._cache_loops")
    mutant = plant("refattn.sparsek._cache_loops", right, wrong)
    monkeypatch.setattr(original, "move_window", mutant.move_window)
    with pytest.raises((AssertionError, IndexError)):
        _require_replay(inputs, 5, 3)
