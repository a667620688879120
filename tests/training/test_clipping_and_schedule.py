"""Norms, clipping and rates beside PyTorch's."""

import math

import numpy as np
import pytest

from refattn.training import WarmupCosine, clip_gradients, global_norm


def gradients(scale=1.0, dtype=np.float64):
    rng = np.random.default_rng(1)
    return {
        name: (scale * rng.standard_normal(shape)).astype(dtype) for name, shape in {"a": (9, 5), "b": (3,)}.items()
    }


@pytest.mark.needs("torch")
@pytest.mark.parametrize("most", [0.5, 1e3], ids=["clipped", "short enough"])
def test_clipping_is_pytorchs_but_for_its_millionth(most):
    import torch

    ours = gradients()
    theirs = [torch.zeros(array.shape, dtype=torch.float64) for array in ours.values()]
    for tensor, array in zip(theirs, ours.values(), strict=True):
        tensor.grad = torch.tensor(array)
    norm = torch.nn.utils.clip_grad_norm_(theirs, most)
    assert math.isclose(clip_gradients(ours, most), float(norm), rel_tol=1e-14)
    for tensor, array in zip(theirs, ours.values(), strict=True):
        np.testing.assert_allclose(array, tensor.grad.numpy(), rtol=1e-6 / float(norm) * 1.01)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_norm_that_float64_holds_is_found_and_clipped(scale):
    found = gradients(scale)
    assert math.isclose(clip_gradients(found, 0.25 * scale), scale * global_norm(gradients()), rel_tol=1e-14)
    assert math.isclose(global_norm(found), 0.25 * scale, rel_tol=1e-14)


def test_a_float32_norm_is_summed_in_float64_whatever_the_order():
    found = gradients(1e30, np.float32)
    assert math.isclose(global_norm(found), float(np.hypot(*(np.linalg.norm(x.astype(float)) for x in found.values()))))
    many = {str(number): np.array([10.0 ** (number % 17)]) for number in range(300)}
    assert global_norm(many) == global_norm(dict(reversed(many.items())))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_said_and_nothing_changed(bad):
    found = {"a": np.array([1.0, bad]), "b": np.ones(2)}
    assert not math.isfinite(clip_gradients(found, 0.1))
    assert (found["b"] == 1).all()
    assert global_norm({}) == global_norm({"a": np.zeros(3)}) == 0.0


@pytest.mark.needs("torch")
def test_the_rate_is_that_of_pytorchs_schedulers():
    import torch

    total, warmup, top, least = 40, 7, 0.3, 0.02
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=top)
    parts = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, least),
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [warmup])
    theirs = []
    for _ in range(total):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = WarmupCosine(top, total, warmup, least)
    np.testing.assert_allclose([ours(step) for step in range(total)], theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top": 0.0}, "top"),
        ({"total": 0}, "total"),
        ({"warmup": 10}, "warmup: 10 came, at least 0 and at most 9"),
        ({"least": 2.0}, "least"),
    ],
)
def test_numbers_that_do_not_fit_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        WarmupCosine(**{"top": 1.0, "total": 10, **wrong})
    with pytest.raises(ValueError, match="step: 10 came"):
        WarmupCosine(1.0, 10)(10)
