r"""Text and numbers as TeX: ``‖V‖_∞ ≤ 2 ε`` becomes what any LaTeX sets, in ASCII (ours).

Signs and letters of mathematics go into math mode, an index or exponent with them; accents and quotation marks become
commands; what TeX reads as its own is escaped. A character that is known to none of the tables is shown by its number,
``U+2318``: the file compiles, and nothing is lost without a trace. The tables are those of the documentation too.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

SYMBOLS = {
    "−": "-", "·": r"\cdot ", "∘": r"\circ ", "±": r"\pm ", "×": r"\times ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "→": r"\to ", "←": r"\leftarrow ", "∈": r"\in ", "⊆": r"\subseteq ",
    "∪": r"\cup ", "∩": r"\cap ", "∞": r"\infty ", "Σ": r"\sum ", "∏": r"\prod ", "∫": r"\int ",
    "∂": r"\partial ", "∇": r"\nabla ", "…": r"\ldots ", "½": r"{\textstyle\frac12}", "¼": r"{\textstyle\frac14}",
    "‖": r"\|", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "′": "'",
}  # fmt: skip
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma",
    "τ": "tau", "υ": "upsilon", "φ": "varphi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta",
    "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀʳᵗᵖⁿᵋ°", [*"0123456789-+", r"\top ", *"rtpn", r"\varepsilon ", r"\circ "], strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
ACCENTS = {"\u0303": "tilde", "\u0302": "hat", "\u0304": "bar"}
"""Accents of letters in formulas."""

_MATH = {**SYMBOLS, **{letter: f"\\{name} " for letter, name in GREEK.items()}} | {
    "<": "<", ">": ">", "|": "|", "µ": r"\mu ", "ℓ": r"\ell ", "∝": r"\propto ", "≪": r"\ll ", "≫": r"\gg ",
    "≡": r"\equiv ", "∼": r"\sim ", "≃": r"\simeq ", "⊙": r"\odot ", "⊗": r"\otimes ", "⊕": r"\oplus ",
    "∀": r"\forall ", "∃": r"\exists ", "∅": r"\emptyset ", "⊂": r"\subset ", "∉": r"\notin ", "⊤": r"\top ",
    "⊥": r"\bot ", "∣": r"\mid ", "∧": r"\wedge ", "∨": r"\vee ", "¬": r"\neg ", "÷": r"\div ",
    "↔": r"\leftrightarrow ", "⇒": r"\Rightarrow ", "⇔": r"\Leftrightarrow ", "↦": r"\mapsto ",
    "↑": r"\uparrow ", "↓": r"\downarrow ", "√": r"\surd ",
}  # fmt: skip
_TEXT = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "`": r"\textasciigrave{}", '"': "''", "[": "{[}",
    "]": "{]}", "…": r"\ldots{}", "–": "--", "—": "---", "“": "``", "”": "''", "‘": "`", "’": "'",
    "•": r"\textbullet{}", "\u00a0": "~", "\u202f": r"\,", "§": r"\S{}", "©": r"\copyright{}", "ß": r"\ss{}",
    "æ": r"\ae{}", "œ": r"\oe{}", "ø": r"\o{}", "ł": r"\l{}", "å": r"\aa{}", "Æ": r"\AE{}", "Œ": r"\OE{}",
    "Ø": r"\O{}", "Ł": r"\L{}", "Å": r"\AA{}", "ı": r"\i{}",
}  # fmt: skip
_TEXT_ACCENTS = dict(
    zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True)
)
_TYPED = _TEXT | {"'": r"\textquotesingle{}", '"': r"{\char34}", "[": "[", "]": "]"}
"""As `_TEXT`, in typewriter letters."""

_LIGATURES = "-,'`"
"""Of which two in a row would be set as another sign."""

_INDEX = re.compile(r"\{([^{}]*)\}|([-−]?[0-9]+|[-−]?[^\W\d_][\u0302-\u0304]?)(?!\w)|([∞‖*])")
"""What an index or exponent is: braces, a number, a letter of its own, or a sign."""


def escape(text: str) -> str:
    r"""Return text as LaTeX sets it in a paragraph or a cell, in one line of ASCII.

    >>> print(escape("100 % of n_basis"), escape("‖V‖_∞ ≤ −∞"), escape("e^{2ε} − √(1 − δ²)"))
    100 \% of n\_basis $\|$V$\|_{\infty }$ $\le $ $-\infty $ e$^{2\varepsilon }$ $-$ $\sqrt{1 - \delta ^{2}}$
    >>> print(escape("b̃_i of Muñoz--Å ⌘"))
    $\tilde{b}_{i}$ of Mu\~{n}oz-{}-\AA{} \texttt{U+2318}
    """
    return _join(_pieces(_apart(" ".join(text.split()))))


def code(text: str) -> str:
    r"""Return an id, a command or an option as it is typed, in typewriter letters, with places where a line may break.

    >>> print(code("sparsek.linear-time"))
    \texttt{sparsek.\allowbreak{}linear-\allowbreak{}time}
    >>> print(code("a--b_{"))
    \texttt{a-\allowbreak{}-\allowbreak{}b\_\allowbreak{}\{}
    """
    found: list[tuple[bool, str]] = []
    for sign in " ".join(text.split()):
        found += [(False, _TYPED[sign])] if sign in _TYPED else _pieces(_apart(sign))
        found += [(False, r"\allowbreak{}")] if sign in "./_-=,:" else []
    return rf"\texttt{{{_join(found)}}}"


def number(value: Any) -> str:
    r"""Return a number to three digits in math mode, text as text, nothing for None.

    >>> print(number(1.234e-13), number(1e-7), number(3.0), number("-inf"), number(-0.5), number(12345.0))
    $1.23\times10^{-13}$ $10^{-7}$ $3$ $-\infty$ $-0.5$ $1.23\times10^{4}$
    """
    if value is None:
        return ""
    if isinstance(value, str) and value.lstrip("-") in ("inf", "nan"):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    if isinstance(value, int):
        return f"${value}$"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent:
        return f"${mantissa}$"
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if mantissa == "1" else rf"${mantissa}\times{power}$"


def _apart(text: str) -> str:
    """Take accents off their letters; of signs such as ≠ a part would be another sign."""
    return "".join(
        sign if sign in _TEXT or sign in RAISED else unicodedata.normalize("NFD", sign) if sign.isalpha() else sign
        for sign in text
    )


def _pieces(text: str) -> list[tuple[bool, str]]:
    """Return what stands in math mode (True) and in text, in order."""
    found: list[tuple[bool, str]] = []
    place = 0
    while place < len(text):
        sign, rest = text[place], text[place + 1 :]
        length = 1
        if sign in "_^" and (index := _INDEX.match(rest)) and (sign == "^" or _takes_index(text[:place])):
            found.append((True, f"{sign}{{{_math(next(part for part in index.groups() if part is not None))}}}"))
            length += index.end()
        elif sign == "√" and (under := _under_root(rest)):
            found.append((True, rf"\sqrt{{{_math(under[1:-1] if under.startswith('(') else under)}}}"))
            length += len(under)
        elif rest[:1] in ACCENTS and not _in_word(text, place):
            found.append((True, rf"\{ACCENTS[rest[0]]}{{{_math(sign)}}}"))
            length = 2
        elif rest[:1] in _TEXT_ACCENTS and sign.isascii():
            found.append((False, rf"\{_TEXT_ACCENTS[rest[0]]}{{{_TEXT.get(sign, sign)}}}"))
            length = 2
        elif run := _run(text[place:]):
            found.append((True, run[1]))
            length = run[0]
        elif sign != "…" and sign in _MATH:
            found.append((True, _MATH[sign]))
        else:
            broken = "{}" if sign in _LIGATURES and rest[:1] == sign else ""
            found.append((False, _text(sign) + broken))
        place += length
    return found


def _join(pieces: list[tuple[bool, str]]) -> str:
    """Write pieces one after the other, neighbours in math mode between one pair of dollars."""
    parts: list[str] = []
    for place, (is_math, tex) in enumerate(pieces):
        before, after = place and pieces[place - 1][0], place + 1 < len(pieces) and pieces[place + 1][0]
        parts.append(("$" if is_math and not before else "") + tex + ("$" if is_math and not after else ""))
    return "".join(parts)


def _math(text: str) -> str:
    """Return text inside math mode: letters as they are, words upright, what only a text can hold in a box."""
    words = re.split(r"((?<![^\W\d_])[A-Za-z]{2,}(?![\w\u0302-\u0304]))", text)
    return "".join(
        rf"\mathrm{{{part}}}"
        if place % 2
        else "".join(tex if is_math or "\\" not in tex else rf"\mbox{{{tex}}}" for is_math, tex in _pieces(part))
        for place, part in enumerate(words)
    )


def _run(text: str) -> tuple[int, str] | None:
    """Return how many raised, or lowered, signs the text begins with, and their TeX."""
    for signs, mark in ((RAISED, "^"), (LOWERED, "_")):
        length = next((i for i, sign in enumerate(text) if sign not in signs), len(text))
        if length:
            return length, f"{mark}{{{''.join(signs[sign] for sign in text[:length])}}}"
    return None


def _under_root(text: str) -> str:
    """Return the bracket, the word or the number with which the text begins; nothing if with none of them."""
    depth = 0
    for place, sign in enumerate(text if text.startswith("(") else ""):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return text[: place + 1]
    word = re.match(r"[^\W_]+[\u0302-\u0304]?(?:_[^\W_](?!\w))?", text)
    return word.group() if word else ""


def _takes_index(before: str) -> bool:
    """Whether an underscore here is an index: after a sign, or a letter of its own; not within a name."""
    return re.search(r"(?:^|[^\w\u0302-\u0304])[^\W\d_]?[\u0302-\u0304]?$|[‖′]$", before) is not None and before != ""


def _in_word(text: str, place: int) -> bool:
    """Whether the accented letter at a place has a letter beside it, as in a name."""
    return text[:place][-1:].isalpha() or text[place + 2 : place + 3].isalpha()


def _text(sign: str) -> str:
    """Return one sign in text mode, in ASCII."""
    if sign in _TEXT:
        return _TEXT[sign]
    if sign.isascii():
        return sign if sign.isprintable() else " "
    plain = unicodedata.normalize("NFKC", sign)
    if plain != sign and plain.isascii() and plain.isprintable():
        return "".join(_TEXT.get(one, one) for one in plain)
    return rf"\texttt{{U+{ord(sign):04X}}}"
