"""Ways to plant an error under a claim of the ledger: what takes a function's place, and what becomes of a result.

`instead`, `result` and `backward` give planters, which take pytest's ``monkeypatch`` and the module of the claim; what
they are given makes the wrong function of the right one, or the wrong result of the right one.
"""

import dataclasses

import numpy as np

import refattn.laboratory.real_heads
import refattn.models
from refattn import dense_attention
from refattn._threads import thread_count
from refattn.convbasis import ConvBasis, bounds
from refattn.experiments.scratch.conv_from_scratch import SETTINGS
from refattn.experiments.scratch.methods import EARLIER, LENGTHS, METHODS, PAIRS
from refattn.experiments.scratch.settings import RATES, SEEDS
from refattn.lowrank.masks import CausalStructure
from refattn.testing import rope_structured
from refattn.testing.real_heads import load_real_heads


def instead(name, make, *places):
    """Plant what `make` makes of the right function; in the claim's own module, or in these places."""

    def plant(monkeypatch, module):
        for place in places or (module,):
            monkeypatch.setattr(place, name, make(getattr(place, name)))

    return plant


def result(name, change, *places):
    """Plant a function whose result is changed."""
    return instead(name, lambda right: lambda *args, **options: change(right(*args, **options)), *places)


def backward(name, change, *methods):
    """Plant a backward whose gradients are changed where the forward ran by one of these methods."""

    def make(right):
        def wrong(dout, cache, **options):
            found = right(dout, cache, **options)
            return change(found) if cache.method in methods else found

        return wrong

    return instead(name, make)


def scaled(factor):
    """An array, or the first of a tuple, off by a factor."""
    return lambda found: (factor * found[0], *found[1:]) if isinstance(found, tuple) else factor * found


def field_off(name, factor=1.001):
    """A gradient off by a factor."""
    return lambda found: found._replace(**{name: factor * getattr(found, name)})


def of_each(change):
    return lambda found: map(change, found)


def grows_like(power):
    """Times that grow like n to a power."""
    return instead("times", lambda right: lambda make, sizes, **options: {n: n**power for n in sizes})


def logits_unscaled(right):
    """Exact attention without its 1/√d."""
    return lambda q, k, v, **options: right(q, k, v, **{**options, "scale": 1.0})


def late(right):
    """Every start found one column late."""

    def wrong(predicate, s, t):
        found = right(predicate, s, t)
        return None if found is None else min(found + 1, t)

    return wrong


def last_segment_dropped(right):
    """The last segment's columns left out of the lower product."""

    def wrong(g, x):
        x = x.copy()
        x[g.starts[-1] :] = 0
        return right(g, x)

    return wrong


def last_row_off_where_compiled(right):
    def wrong(*, mask, method="fast", **inputs):
        out, cache = right(**inputs, mask=mask, method=method)
        if method == "fast":
            out = out + 1e-10 * (np.arange(len(out)) == len(out) - 1)[:, None]
        return out, cache

    return wrong


def last_entry_forgotten(right):
    def wrong(h):
        forgotten = np.array(h, dtype=float)
        forgotten[-1, -1] += 1.0
        return right(forgotten)

    return wrong


def last_value_added(right):
    """Every row sees the last value."""
    return lambda **inputs: right(**inputs) + inputs["v"][-1]


def budget_of_one_more(right):
    return lambda z, k: right(z, k + 1)


def a_masked_row_gets_something(found):
    out, cache = found
    return out + 1e-3 * (np.arange(len(out)) == 2)[:, None], cache


def half_precision(right):
    def wrong(q, k, v, **options):
        out = right(q, k, v, **options)
        return out.astype(np.float16).astype(np.float32) if q.dtype == np.float32 else out

    return wrong


def one_entry_off(matrix):
    matrix = matrix.copy()
    matrix[-1, -1] += 1
    return matrix


def wild_logits(monkeypatch, module):
    """The logits inside the condition, which are drawn first, 80 times as large."""
    right, factors = np.random.default_rng, iter((80.0, 1.0, 1.0))

    class Wild:
        def __init__(self, seed):
            self.rng, self.factor = right(seed), next(factors)

        def standard_normal(self, shape):
            return self.factor * self.rng.standard_normal(shape)

    monkeypatch.setattr(np.random, "default_rng", Wild)


def unguarded(monkeypatch, module):
    monkeypatch.setitem(bounds.ROW_TOLERANCE, "float64", 1e300)


def holding(shape_of):
    """Plant a function that holds so much memory for a moment."""

    def make(right):
        def wasteful(first, *args, **options):
            held = np.empty(shape_of(first), first.dtype)
            assert held.nbytes >= first.nbytes
            return right(first, *args, **options)

        return wasteful

    return make


def no_estimate(right):
    """The fast path's guard switched off: every estimate says that nothing is lost."""
    return lambda *given: (0 * right(*given)[0], *right(*given)[1:])


def transposed_shifted(right):
    def shifted(self, x, *, transposed=False):
        return np.roll(right(self, x, transposed=transposed), int(transposed), axis=0)

    return shifted


def bits_by_thread(found):
    return found * np.float32(1 + 1e-6 * thread_count())


def kernels_off(factor):
    return lambda basis: ConvBasis(basis.starts, basis.kernels * factor)


def one_start_moved(best):
    """The last start of the best two, one column away."""
    starts = list(best.starts)
    starts[1] = starts[1] - np.array([0, 1]) if starts[1][1] - starts[1][0] > 1 else starts[1] + np.array([0, 1])
    return dataclasses.replace(best, starts=tuple(starts))


def errors_off(best):
    return dataclasses.replace(best, squared_error=best.squared_error + 1e-9 * best.energy)


def one_kernel_off(found):
    kernels = found.basis.kernels.copy()
    kernels[0, 0] += 1e-6 if kernels.dtype == np.float64 else 1e-2
    return dataclasses.replace(found, basis=ConvBasis(found.basis.starts, kernels))


def last_start_moved(found):
    """The last start a column late, with the kernels as they were."""
    if found.basis.starts.size == 1:
        return found
    starts, kernels = found.basis.starts.copy(), found.basis.kernels.copy()
    starts[-1] += 1
    kernels[-1, kernels.shape[1] - starts[-1] :] = 0
    return dataclasses.replace(found, basis=ConvBasis(starts, kernels))


def conv_like(real):
    q, k, _, _ = rope_structured(2048, 64, starts=4, seed=0, lead=(len(real.layers), 1))
    return dataclasses.replace(real, q=q, k=k)


def shorter(heads):
    return dataclasses.replace(heads, **{name: getattr(heads, name)[..., :512, :] for name in ("q", "k", "v")})


def logits_nearly_zero(heads):
    return dataclasses.replace(heads, q=1e-9 * heads.q)


def features_weighted(weights):
    """Features whose keys' weights are multiplied by something."""

    def change(features):
        features._key_weights = weights(np.arange(features.rank), features.rank) * features._key_weights
        return features

    return change


class LaxCausal(CausalStructure):
    """Takes a mask whose rows are not causal."""

    @classmethod
    def from_dense(cls, dense):
        return cls(len(dense))


def queries_too_large(right):
    class Wrong(right):
        def _queries(self, q, *, shifted):
            return super()._queries(q, shifted=shifted) * 1.1

    return Wrong


def variance_overstated(right):
    class Wrong(right):
        def relative_variance(self, q, k):
            return 1.5 * super().relative_variance(q, k)

    return Wrong


def bound_too_small(found):
    out, cache = found
    return out, dataclasses.replace(cache, bound=0.1 * cache.bound)


def last_threshold_too_low(tau):
    tau = tau.copy()
    tau[..., -1] -= 1.0
    return tau


def differs_from_run_to_run(right):
    runs = iter(range(10))

    def wrong(dout, cache):
        found = right(dout, cache)
        found.v[0, 0] += next(runs) * 1e-3
        return found

    return wrong


def larger_every_time(right):
    class Wrong(right):
        made = 0

        @property
        def nbytes(self):
            Wrong.made += 1
            return super().nbytes + Wrong.made

    return Wrong


def answers_of_exact_attention(right):
    """Records of classification in which nothing that takes exact attention's place loses anything."""

    def place(row):
        return row["model"], row["begin"]

    def planted(name):
        rows = [dict(row) for row in right(name)]
        exact = {place(row): row["right"] for row in rows if row["method"] == "exact"}
        return [{**row, "right": exact[place(row)]} for row in rows]

    return planted


def worse_learned_scores(right):
    """Records in which the learned scores lose as much as the window with sinks, and a little more."""

    def wrong(name):
        rows = [dict(row) for row in right(name)]
        if name == "sparsek-passkey":
            return [{**row, "success": row["success"] and row["attention"] != "learned"} for row in rows]
        learned = ("learned", "shared", "long")
        return [{**row, "loss": row["loss"] + 0.3 * (row["attention"] in learned)} for row in rows]

    return wrong


def eight_times_as_large(scorer):
    weight = np.repeat(scorer.weight, 8, axis=2)
    return type(scorer)(weight, scorer.slope, scorer.n_select, scorer.window, scorer.manifest)


class Decoder:
    """Stands for the language model: of a given perplexity, and a given one with conv attention."""

    def __init__(self, exact=24.59, replaced=178.0):
        self.exact, self.replaced = exact, replaced

    def from_gguf(self, path, **options):
        return self

    def perplexity(self, tokens, attention=None):
        return self.exact if attention is None else self.replaced


def model(decoder):
    """Plant a decoder, in the place of weights and texts."""

    def plant(monkeypatch, module):
        monkeypatch.setattr(refattn.models, "Llama", decoder)
        monkeypatch.setattr(refattn.models, "smollm2_path", lambda: None)
        monkeypatch.setattr(module, "_essay", lambda: np.arange(8))

    return plant


def heads_of_the_model(steps):
    """Plant computed heads: the shipped ones, with the largest query so many steps of float16 off."""

    def plant(monkeypatch, module):
        model(Decoder())(monkeypatch, module)
        shipped = load_real_heads()
        q = np.asarray(shipped.q, dtype=np.float16).copy()
        place = np.unravel_index(np.abs(q).argmax(), q.shape)
        for _ in range(steps):
            q[place] = np.nextafter(q[place], np.float16(np.inf))
        computed = {"q": q, "k": shipped.k, "v": shipped.v}
        monkeypatch.setattr(refattn.laboratory.real_heads, "compute_heads", lambda *args: computed)

    return plant


def nearer_with_every_term(right):
    """Plant outputs that come the nearer to exact attention the more terms there are."""
    return lambda q, k, v, *, basis, scale: dense_attention(q, k, v, scale=scale) * (1 + 1 / basis.starts.size)


def study_rows(ahead, task="recall"):
    """Records of a whole study, in which SparseK with a window is so much ahead of the best earlier method."""
    rows = []
    for number, method in enumerate(METHODS[task]):
        sparse = method != "exact" and "linear" not in method and "features" not in method
        level = 0.2 + 0.02 * number if method in EARLIER else 0.3
        best = 0.2 + 0.02 * (list(METHODS[task]).index("routing"))
        level = best + ahead if method == "sparsek with a window" else level
        trainings = [(0, rate) for rate in RATES] + [(seed, RATES[1]) for seed in SEEDS[1:]]
        for seed, rate in trainings:
            about = {"method": method, "task": task, "n": LENGTHS[task], "seed": seed, "rate": rate, "quick": False}
            kept = None if sparse or method == "exact" else 1056
            pairs = LENGTHS[task] if method == "exact" else PAIRS[task] if sparse else None
            footing = {
                "parameters": 123456, "tokens": 2457600, "pairs": pairs, "state": kept,
                "validation_accuracy": 0.9 if rate == RATES[1] else 0.1,
                "validation_loss": 0.1 if rate == RATES[1] else 0.9,
            }  # fmt: skip
            right = level + 0.01 * seed + (0.001 * seed if method == "routing" else 0)
            rows.append({**about, "step": 100, "loss": 1.0})
            for times in (1, 2, 4):
                found = {"targets": 512, "accuracy": right / times, "loss": 2 - right / times}
                rows.append({**about, "times": times, "distance": None, **found, **footing})
                rows.append({**about, "times": times, "distance": 128, **found})
    return rows


def study(ahead):
    """Plant the records of such a study."""

    def plant(monkeypatch, module):
        monkeypatch.setattr(module, "recorded", lambda: study_rows(ahead))

    return plant


def conv_study_rows(behind, task, methods):
    """Records of a whole study in which conv attention is so many nats behind exact attention."""
    found = []
    for method in methods:
        for seed, rate in [(0, rate) for rate in RATES] + [(seed, RATES[1]) for seed in SEEDS[1:]]:
            about = {"method": method, "task": task, "seed": seed, "rate": rate, "quick": False}
            loss = 1.0 + 0.01 * seed + (0 if method == "exact" else behind + 0.001 * seed)
            footing = {
                "parameters": 9, "tokens": 9, "pairs": 128 if method == "exact" else None, "state": None,
                "validation_accuracy": float(rate == RATES[1]), "validation_loss": float(rate != RATES[1]),
            }  # fmt: skip
            found.append({**about, "step": SETTINGS[task].steps, "loss": loss, "residual": 0.5})
            found.append({**about, "times": 1, "distance": None, "loss": loss, "other_loss": 2.0, **footing})
    return found


def conv_study(behind):
    """Plant the records of such a study."""

    def plant(monkeypatch, module):
        monkeypatch.setattr(module, "recorded", lambda _, *task: conv_study_rows(behind, *task))

    return plant
