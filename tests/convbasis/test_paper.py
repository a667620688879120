"""The paper's algorithms, as written: Recover finds what `recover` finds, and a changed line of it shows."""

import numpy as np
import pytest

from refattn import ConvBasis, dense_attention, recover
from refattn.convbasis import basis_from_starts, paper
from refattn.testing import attention_inputs, rope_structured, row_errors


def test_algorithm_1_as_written_is_exact_on_mild_logits():
    q, k, v, starts = rope_structured(400, 16, starts=4, seed=0, deviation=0.5)
    out = paper.algorithm_1(v, basis_from_starts(q, k, starts))
    assert row_errors(out, dense_attention(q, k, v)).max() < 1e-11


@pytest.mark.parametrize("k", [1, 2, 5, 30], ids="k={}".format)
def test_the_exp_transform_is_that_of_the_basis(k):
    q, keys, _ = attention_inputs(30, 4, seed=k)
    basis = basis_from_starts(q, keys, np.arange(30)[:k])
    transformed = paper.exp_transform(basis.vectors, basis.sizes)
    np.testing.assert_allclose(transformed, basis.exp_transform().vectors, rtol=1e-12, atol=1e-12)


class Noisy:
    """Logits of known segments, (T, δ)-non-degenerate, with noise up to a fraction of δ/(5T); the scale is 1."""

    def __init__(self, n, starts, T, seed, fraction):
        q, k, _, _ = rope_structured(n, 8, starts=starts, seed=seed)
        self.k, self.T, self.starts = len(starts), T, starts
        self.delta = 0.999 * basis_from_starts(q, k, starts, scale=1.0).nondegeneracy(T)  # no rounding decides
        self.eps = fraction * self.delta / (5 * T)
        noise = np.random.default_rng(seed).uniform(-self.eps, self.eps, (n, n))
        self.Q, self.K = np.concatenate([q, noise], axis=1), np.concatenate([k, np.eye(n)], axis=1)

    def as_written(self, module=paper):
        return module.algorithm_2(self.Q, self.K, self.k, self.T, self.delta, self.eps)

    def recovered(self):
        options = {"n_basis": self.k, "probe": self.T, "delta": self.delta, "eps": self.eps}
        return recover(self.Q, self.K, **options, scale=1.0)


def random_segments(rng, n, k, T):
    """The starts of k segments of n columns, the first of column 0 and the last of at least T."""
    return [0, *(1 + np.sort(rng.choice(n - T, k - 1, replace=False)))]


CASES = [(1, 1, 1), (20, 1, 1), (20, 1, 20), (60, 2, 3), (60, 5, 1), (60, 5, 40), (200, 17, 6), (150, 100, 4)]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99], ids="eps={}·limit".format)
@pytest.mark.parametrize(("n", "k", "T"), CASES, ids=str)
def test_recover_as_written_finds_what_recover_finds(n, k, T, fraction):
    rng = np.random.default_rng(n + k + T)
    for seed in range(5):
        given = Noisy(n, random_segments(rng, n, k, T), T, seed, fraction)
        b, m = given.as_written()
        basis = given.recovered()
        np.testing.assert_array_equal(n - m, given.starts)
        np.testing.assert_array_equal(n - m, basis.starts)
        np.testing.assert_allclose(b, basis.vectors, rtol=0, atol=1e-12 * np.abs(basis.kernels).max())


@pytest.mark.parametrize("k", [1, 3, 40], ids="k={}".format)
def test_on_any_input_with_a_tiny_delta_both_take_the_first_columns(k):
    q, keys, _ = attention_inputs(40, 6, seed=0)
    b, m = paper.algorithm_2(q, keys, k, 1, 1e-12, 0.0)
    basis = recover(q, keys, n_basis=k, probe=1, delta=1e-12, scale=1.0)
    np.testing.assert_array_equal(40 - m, basis.starts)
    np.testing.assert_allclose(np.cumsum(b, axis=0)[-1, : m[-1]], basis.kernels[-1, : m[-1]], rtol=0, atol=1e-12)


def test_the_basis_as_written_makes_algorithm_1_exact_attention():
    q, k, v, _ = rope_structured(300, 16, starts=4, seed=0, deviation=0.5)
    b, m = paper.algorithm_2(q / 4, k, 4, 3, 1e-6, 0.0)
    out = paper.algorithm_1(v, ConvBasis(300 - m, np.where(np.arange(300) < m[:, None], np.cumsum(b, axis=0), 0)))
    assert row_errors(out, dense_attention(q, k, v)).max() < 1e-11


def integers():
    """Two segments whose first two entries differ by just δ = 8: α = δ."""
    given = Noisy.__new__(Noisy)
    given.Q, given.K = np.ones((6, 1)), np.array([[4.0], [4], [4], [8], [8], [8]])
    given.k, given.T, given.delta, given.eps, given.starts = 2, 2, 8.0, 0.0, [0, 3]
    return given


def agrees(given, module=paper):
    b, m = given.as_written(module)
    basis = given.recovered()
    found = len(given.Q) - m
    return found.tolist() == basis.starts.tolist() and np.allclose(b, basis.vectors, rtol=0, atol=1e-10)


PLANTED = {
    "a distance of δ is none": ("if alpha >= delta", "if alpha > delta"),
    "the comparison reversed": ("if alpha >= delta", "if alpha < delta"),
    "the noise not allowed for": ("delta - 2 * T * eps", "delta"),
    "the left half with its end": ("delta, eps, v, j + 1, t)", "delta, eps, v, j + 2, t)"),
    "one entry too few": ("Q[j : j + T] @ K[j] - v)", "Q[j : j + T - 1] @ K[j] - v[:-1])"),
    "v not summed up": ("v = v + b[i, :T]", "v = b[i, :T]"),
    "u not summed up": ("u = u + b[i]", "u = b[i]"),
    "the last column left out": ("s, t = -1, n - T", "s, t = -1, n - T - 1"),
    "a size one off": ("m[i] = n - s", "m[i] = n - s - (i > 0)"),
}


@pytest.mark.parametrize("error", PLANTED)
def test_a_changed_line_shows(error, altered):
    given = [integers(), *(Noisy(60, [0, 7, 23, 57], 3, seed, 0.99) for seed in range(8))]
    assert all(agrees(one) for one in given)
    wrong = altered(paper, PLANTED[error])

    def caught(one):
        try:
            return not agrees(one, wrong)
        except (ValueError, IndexError):
            return True

    assert any(caught(one) for one in given)
