"""Nothing of one text serves another; a step over many layers is whole, or what it left behind refuses to go on."""

import numpy as np
import pytest

from refattn import SparseKCache
from refattn.models import Capture, GeneratingAttention, Llama, LlamaConfig, Scorer, SelectiveAttention, generate

CONFIG = LlamaConfig(
    n_layers=3, width=8, ffn_width=12, vocab_size=30, n_heads=2, n_kv_heads=1, head_width=4, context_length=64,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip
RNG = np.random.default_rng(0)
MODEL = Llama(CONFIG, {n: RNG.standard_normal(s) for n, s in CONFIG.tensor_shapes().items()}, dtype="float64")
FIRST, SECOND = RNG.integers(0, 30, (2, 20))


def scorer(layers=3):
    weight = np.random.default_rng(1).standard_normal((layers, 1, 8)).astype(np.float32)
    return Scorer(weight, np.full((layers, 1), 0.01, np.float32), np.full(layers, 3), np.full(layers, 2))


def fresh(tokens):
    attend = SelectiveAttention(scorer())
    return MODEL(tokens, attend, observe=attend.observe)


def plain(attend):
    return attend


def wrapped(attend):
    return lambda layer, q, k, v: attend(layer, q, k, v)


WAYS = pytest.mark.parametrize("way", [plain, wrapped, Capture], ids=["itself", "in-a-function", "in-a-capture"])


@WAYS
def test_a_second_text_without_its_observer_is_refused(way):
    attend = SelectiveAttention(scorer())
    MODEL(FIRST, way(attend), observe=attend.observe)
    for tokens in (SECOND, FIRST, SECOND[:5]):
        with pytest.raises(ValueError, match="is `observe` given to the model"):
            MODEL(tokens, way(attend))
    np.testing.assert_array_equal(MODEL(SECOND, way(attend), observe=attend.observe), fresh(SECOND))


def test_every_way_to_run_a_model_refuses_it():
    attend = SelectiveAttention(scorer())
    MODEL(FIRST, attend, observe=attend.observe)
    for run in (MODEL.hidden, MODEL.losses, MODEL.perplexity):
        with pytest.raises(ValueError, match="is `observe` given"):
            run(SECOND, attend)


def test_the_observer_of_another_object_does_not_serve():
    attend, other = SelectiveAttention(scorer()), SelectiveAttention(scorer())
    MODEL(FIRST, attend, observe=attend.observe)
    with pytest.raises(ValueError, match="is `observe` given"):
        MODEL(SECOND, attend, observe=other.observe)


def test_scores_of_an_interrupted_forward_do_not_serve_the_next():
    attend = SelectiveAttention(scorer())

    def stops(layer, a):
        attend.observe(layer, a)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MODEL(FIRST, attend, observe=stops)
    with pytest.raises(ValueError, match="is `observe` given"):
        MODEL(SECOND, attend)


def test_scores_of_one_layer_do_not_serve_another():
    attend, a = SelectiveAttention(scorer()), np.ones((4, 8))
    q, k = np.ones((2, 4, 4)), np.ones((1, 4, 4))
    attend.observe(0, a)
    with pytest.raises(ValueError, match=r"those of layer 0, of shape \(1, 4\), came, those of layer 1"):
        attend(1, q, k, k)
    with pytest.raises(ValueError, match="layer: 3 came, the scorer has 3 layers"):
        attend.observe(3, a)


def test_a_capture_holds_the_last_forward_alone():
    capture = Capture()
    MODEL(FIRST, capture, observe=capture.observe)
    MODEL(SECOND, capture)
    assert not capture.inputs  # and not the first text's beside the second's queries
    assert len(capture.q) == 3
    with pytest.raises(ZeroDivisionError):
        MODEL(FIRST, capture, observe=lambda layer, a: 1 / (1 - layer))
    assert list(capture.q) == [0]


# A step over many layers


def observer(attend, layer, error):
    def observe(at, a):
        if at == layer:
            raise error
        attend.observe(at, a)

    return observe


def step(attend, **options):
    return MODEL.hidden([7], attend, **{"observe": attend.observe, "start": attend.position} | options)


ERRORS = [KeyboardInterrupt(), MemoryError(), RuntimeError("an observer's"), SystemExit()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_step_that_ended_between_layers_is_undone_or_the_cache_refuses_to_go_on(layer, error):
    attend, right = GeneratingAttention(scorer()), GeneratingAttention(scorer())
    for one in (attend, right):
        generate(MODEL, FIRST, 5, one)
    with pytest.raises(type(error)):
        step(attend, observe=observer(attend, layer, error))
    assert attend.position == 24
    if layer == 0:  # nothing was taken in
        np.testing.assert_array_equal(step(attend), step(right))
        return
    for _ in range(2):  # it does not go on a second time either
        with pytest.raises(ValueError, match=r"layers have taken in .*24.* tokens; a step ended"):
            step(attend)
        with pytest.raises(ValueError, match="begin again"):
            generate(MODEL, [1], 1, attend)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("first", [True, False], ids=["prompt", "token"])
def test_a_step_that_ended_inside_a_layer_leaves_nothing_that_goes_on(layer, error, first, monkeypatch):
    attend = GeneratingAttention(scorer())
    if not first:
        generate(MODEL, FIRST, 5, attend)

    def fails(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(attend._caches[layer], "prefill", fails)
        with pytest.raises(type(error)):
            MODEL.hidden(FIRST, attend, observe=attend.observe, start=attend.position)
    with pytest.raises(ValueError, match="begin again"):
        step(attend)


def test_a_step_that_is_refused_in_the_first_layer_takes_nothing_in():
    attend, right = GeneratingAttention(scorer()), GeneratingAttention(scorer())
    for one in (attend, right):
        generate(MODEL, FIRST, 5, one)
    for tokens, options in (([7, 99], {}), ([7], {"observe": None}), ([7], {"start": 0}), ([7], {"start": 25})):
        with pytest.raises(ValueError, match=r"tokens: 99|observe|start: "):
            MODEL.hidden(tokens, attend, **{"observe": attend.observe, "start": 24} | options)
    np.testing.assert_array_equal(step(attend), step(right))


def test_layers_out_of_order_and_a_scorer_of_more_layers_are_refused():
    attend, a, k = GeneratingAttention(scorer()), np.ones((2, 8)), np.ones((1, 2, 4))
    attend.observe(1, a)
    with pytest.raises(ValueError, match="layer 1 came, layer 0 was wanted"):
        attend(1, k, k, k)
    longer = GeneratingAttention(scorer(4))
    with pytest.raises(ValueError, match="a model with more layers"):
        generate(MODEL, FIRST, 2, longer)
    with pytest.raises(ValueError, match="layer: 2 came, the scorer has 2 layers"):
        generate(MODEL, FIRST, 2, GeneratingAttention(scorer(2)))


def test_tokens_go_on_where_the_last_ones_ended_or_are_refused():
    attend = GeneratingAttention(scorer())
    MODEL.hidden(FIRST, attend, observe=attend.observe)
    for start in (0, 19, 21):
        with pytest.raises(ValueError, match=f"start: {start} came, 20 was wanted"):
            step(attend, start=start)
    with pytest.raises(ValueError, match="start: 0 came, 20 was wanted"):
        MODEL.losses(SECOND, attend, observe=attend.observe)


def test_a_cache_that_was_interrupted_between_a_token_and_its_position_refuses_to_go_on(tmp_path, monkeypatch):
    from refattn.sparsek import _cache_loops

    cache, x = SparseKCache(2, 2), np.random.default_rng(0).standard_normal((6, 3))
    for t in range(4):
        cache.step(x[t], x[t], x[t], x[t, 0])
    moves = _cache_loops.move_window

    def interrupted(*arguments):
        moves(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_cache_loops, "move_window", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.step(x[4], x[4], x[4], x[4, 0])
    for go_on in (
        lambda: cache.step(x[4], x[4], x[4], x[4, 0]),
        lambda: cache.prefill(x, x, x, x[:, 0]),
        lambda: cache.save(tmp_path / "c.npz"),
    ):
        with pytest.raises(ValueError, match="interrupted while it took in the token at position 4"):
            go_on()
