"""Any text becomes LaTeX that compiles, in ASCII, and says the same."""

import subprocess
import unicodedata

import pytest

from refattn.report import tex


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("100 % & #1 of $5_000", r"100 \% \& \#1 of \$5\_000"),
        ("a\\b {c} ~ ^", r"a\textbackslash{}b \{c\} \textasciitilde{} \textasciicircum{}"),
        ("−∞ ≤ x", r"$-\infty $ $\le $ x"),
        ("‖V‖_∞", r"$\|$V$\|_{\infty }$"),
        ("‖Y‖_F and n_basis and x_1", r"$\|$Y$\|_{F}$ and n\_basis and x$_{1}$"),
        ("√(1 − δ²)", r"$\sqrt{1 - \delta ^{2}}$"),
        ("√(f(x)) √d_k √2 √", r"$\sqrt{f(x)}$ $\sqrt{d_{k}}$ $\sqrt{2}$ $\surd $"),
        ("2^-10 e^{2ε} a^b", r"2$^{-10}$ e$^{2\varepsilon }$ a$^{b}$"),
        ("D⁻¹Aᵀ 10⁶ log₂ n", r"D$^{-1}$A$^{\top }$ 10$^{6}$ log$_{2}$ n"),
        ("b̃_i Ỹ ã", r"$\tilde{b}_{i}$ $\tilde{Y}$ $\tilde{a}$"),
        ("Muñoz, Müller, Łukasz, Gauß", r"Mu\~{n}oz, M\"{u}ller, \L{}ukasz, Gau\ss{}"),
        ("“a” – b — c’s …", r"``a'' -- b --- c's \ldots{}"),
        ("--only a''b", r"-{}-only a'{}'b"),
        ("x <y> |z|", r"x $<$y$>$ $|$z$|$"),
        ("⌘ 日", r"\texttt{U+2318} \texttt{U+65E5}"),
        ("a\nb\tc\x07", "a b c "),
        ("≠ ∈", r"$\ne $ $\in $"),
        ("", ""),
    ],
)  # fmt: skip
def test_text(text, wanted):
    assert tex.escape(text) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(None, ""), (0, "$0$"), (0.0, "$0$"), (1e-13, "$10^{-13}$"), (1.234e-13, r"$1.23\times10^{-13}$"),
     (0.05, "$0.05$"),
     (-2.5e7, r"$-2.5\times10^{7}$"), ("inf", r"$\infty$"), ("-inf", r"$-\infty$"), (float("nan"), "NaN"),
     ("nan", "NaN"),
     (True, "True"), ("n_basis", r"n\_basis"), (10**6, "$1000000$")],
)  # fmt: skip
def test_numbers(value, wanted):
    assert tex.number(value) == wanted


def test_a_command_is_shown_as_it_is_typed():
    assert tex.code("a --b='c d'").replace(r"\allowbreak{}", "") == (
        r"\texttt{a --b=\textquotesingle{}c d\textquotesingle{}}"
    )


@pytest.fixture(scope="module")
def every_sign():
    """All of the Latin, Greek and mathematical blocks, and of others a few."""
    blocks = (range(0x20, 0x250), range(0x2B0, 0x400), range(0x1E00, 0x1F00), range(0x2000, 0x2400), (0x1F642, 0xFB01))
    return [chr(code) for block in blocks for code in block if unicodedata.category(chr(code)) != "Cn"]


def test_every_sign_becomes_ascii_on_its_own_and_beside_others(every_sign):
    for sign in every_sign:
        for text in (sign, f"a{sign}b", f"a_{sign} √{sign}", f"{sign}{sign}", f"^{sign}"):
            for found in (tex.escape(text), tex.code(text)):
                assert found.isascii(), text
                assert found.count("{") - found.count(r"\{") == found.count("}") - found.count(r"\}"), text
                assert "$$" not in found.replace(r"\$", ""), text


def test_every_sign_compiles(every_sign, compiled):
    body = "\n\n".join(
        f"{tex.escape(f'{s} a{s}b a_{s} √{s} ^{s} {s}{s}')} {tex.code(f'{s}a{s}')} {tex.number(s)}" for s in every_sign
    )
    log = compiled({"a.tex": rf"\documentclass{{article}}\begin{{document}}{body}\end{{document}}"}, "pdflatex a")
    assert "Missing character" not in log


def test_what_is_cut_off_is_an_error_of_the_compiler_and_of_this_check(compiled):
    with pytest.raises(subprocess.CalledProcessError):
        compiled({"a.tex": r"\documentclass{article}\begin{document}100 % & \end{document}"}, "pdflatex a")
