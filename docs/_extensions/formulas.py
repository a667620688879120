"""Formulas written in Unicode, as TeX: ``‖Y − Ỹ‖_F ≤ 2 tanh(r/2)`` becomes what MathJax sets.

The pages and docstrings write formulas in code spans and indented blocks, which read the same in an editor and at a
terminal. Here is what turns them into TeX for the HTML pages. What is not a formula, or has a sign that is not known
here, stays code.
"""

import re
import unicodedata

from refattn.report import tex
from refattn.report.tex import ACCENTS, GREEK, LOWERED, RAISED

SYMBOLS = tex.SYMBOLS | {"∎": r"\blacksquare "}
OPERATORS = {"exp", "log", "max", "min", "tanh", "cos", "sin", "inf", "sup", "det"}
"""What TeX has a command for."""

FUNCTIONS = {
    "clip", "diag", "Diag", "conv", "argmin", "conj", "seg", "blk", "re", "im", "cost", "noise", "softmax",
    "Re", "Im", "MaskSelect", "sign", "SparseK",
}  # fmt: skip
PROSE = {"for", "of", "to", "on", "if", "in", "is", "over", "the", "with", "every", "subject", "segment", "all"}
"""Words of a sentence inside a formula, which keep the spaces beside them."""

SIGNS = set(SYMBOLS) - {"…", "→", "←"} | set(GREEK) | set("√ᵀ²³⁻°₀₁₂̃̂̄")
"""What makes a piece of text a formula; dots and arrows occur in code too."""

CODE = re.compile(r'["\\#$%@`]|->|\*\*|//|--|\w\w=\w|\w\.[a-z]\w|__|\(…')
"""What no formula has."""

NUMBERED = re.compile(r"\s{3,}\(\d\)\s*$")
"""The end of a formula that the text refers to."""

LETTER = r"[^\W\d_⁰¹²³⁴-⁹ᵀʳⁿ₀-₉½¼]"
RELATIONS = "=≤≥<>≈∈⊆"
TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<name>[a-z]{{3,}}(?:_[a-z]{{3,}})+|n_[a-z]{{4,}})|(?P<word>{LETTER}(?:{LETTER}|[0-9\u0302-\u0304])*)"
    r"|(?P<number>[0-9][0-9,.]*[0-9]|[0-9])"
    r"|(?P<dots>\.\.)|(?P<other>.)",
    re.DOTALL,
)


def is_formula(text):
    """Say whether a piece of code is a formula: it has a sign of mathematics and none of a program.

    >>> [is_formula(text) for text in ("0 ≤ p ≤ 1", "e^{x}", "(…, n, d)", 'f(…, gate="v")', "n_basis=3")]
    [True, True, False, False, False]
    """
    signs = any(sign in SIGNS for sign in unicodedata.normalize("NFD", text)) or re.search(r"[_^]\{|\w\^\w", text)
    counted = NUMBERED.search(text) or ("…" in text and re.search(r"\b[A-Za-z]_[a-z\d]\b", text))  # u_1, …, u_k
    return bool(signs or counted) and CODE.search(text) is None


def to_tex(text):
    r"""Return a formula as TeX.

    >>> print(to_tex("‖Y − Ỹ‖_∞ ≤ 2δ / (1 + √(1 − δ²))"))
    \|Y - \tilde{Y}\|_{\infty } \le  2\delta  / (1 + \sqrt{1 - \delta ^{2}})
    >>> print(to_tex("f(τ) = Σ_{u<j≤w} z_(j)"))
    f(\tau ) = \sum _{u<j\le w} z_{(j)}
    >>> to_tex("a ⌘ b")
    Traceback (most recent call last):
        ...
    ValueError: ⌘ came, a sign of a formula was wanted
    """
    # Only letters are taken apart: of signs such as ≠ a part would be another sign.
    apart = "".join(unicodedata.normalize("NFD", sign) if sign.isalpha() else sign for sign in text)
    tokens = [(match.lastgroup, match.group()) for match in TOKEN.finditer(apart)]
    return re.sub(r"\^\{([^{}]*)\}\^\{", r"^{\1", _Reader(tokens).all())  # a sign and a transposition: one script


def pieces(text, shortest=14, longest=30):
    """Split a formula in a line of text where it may break: before relations, and before a sum's signs if long.

    >>> pieces("f(τ) = u + Σ_{u<j≤w} z_(j) − (w − u) τ")
    ['f(τ)', '= u', '+ Σ_{u<j≤w} z_(j)', '− (w − u) τ']
    >>> pieces("p ≥ 0")
    ['p ≥ 0']
    """
    parts = _split(text, RELATIONS) if len(text) > shortest else [text]
    return [piece for part in parts for piece in (_split(part, "+−") if len(part) > longest else [part])]


def _split(text, signs):
    """Split before any of some signs that stand between spaces and in no bracket."""
    depth, bars, start, found = 0, 0, 0, []
    for place, sign in enumerate(text):
        depth += (sign in "([{⟨⌊") - (sign in ")]}⟩⌋")
        bars += sign in "|‖"
        between = text[place - 1 : place] == " " and text[place + 1 : place + 2] == " "
        if sign in signs and between and depth == 0 and bars % 2 == 0 and place - 1 > start:
            found.append(text[start : place - 1])
            start = place
    return [*found, text[start:]]


def is_prose(text):
    """Say whether a part of a block is of words, beside the formulas.

    >>> [is_prose(text) for text in ("for every column j", "and", "scale · q", "clip(z, 0, 1)")]
    [True, True, False, False]
    """
    return re.match(r"[a-z]{3,}(?: [a-z]{2,}|$)", text) is not None


def lines(text, longest=36):
    """Return a block's lines: for each the formulas that stand apart, in pieces if long, and its number or "".

    >>> lines("a = √b,      c < d      (2)")
    [([['a = √b,'], ['c < d']], '(2)')]
    """
    found = []
    for line in text.strip("\n").splitlines():
        *parts, last = re.split(r"\s{3,}", line.strip())
        numbered = re.fullmatch(r"\(\d\)", last)
        apart = parts if numbered else [*parts, last]
        found.append(
            ([_split(one, RELATIONS) if len(one) > longest else [one] for one in apart], last if numbered else "")
        )
    return found


class _Reader:
    """Read tokens from left to right, with scripts, roots and sets in brackets of their own."""

    def __init__(self, tokens):
        self.tokens, self.place = tokens, 0

    def peek(self):
        return self.tokens[self.place] if self.place < len(self.tokens) else ("end", "")

    def next(self):
        token = self.peek()
        self.place += 1
        return token

    def all(self, until=None):
        """Return everything up to a closing bracket, or to the end."""
        parts = []
        while True:
            kind, text = self.peek()
            if kind == "end":
                if until:
                    raise ValueError(f"{until} is missing")
                return "".join(parts)
            if text == until:
                self.next()
                return "".join(parts)
            parts.append(self.one())

    def one(self):
        """Return the next piece."""
        kind, text = self.next()
        if kind == "space":
            return r"\ " if self.between_words() else " "
        if kind == "word":
            return self.word(text)
        if kind == "name":
            return r"\mathtt{" + text.replace("_", r"\_") + "}"
        if kind == "number":
            return text.replace(",", "{,}")
        if kind == "dots":
            return r"\ldots "
        if text in "_^":
            return text + "{" + self.script() + "}"
        if text == "√":
            return self.root()
        if text == "{":
            return r"\{" + self.all("}") + r"\}"
        for signs, mark in ((RAISED, "^"), (LOWERED, "_")):
            if text in signs:
                return mark + "{" + signs[text] + self.run(signs) + "}"
        if text in SYMBOLS:
            return SYMBOLS[text]
        if text.isascii() and text in "+-=<>/()[],.;:!'|*":
            return text
        raise ValueError(f"{text} came, a sign of a formula was wanted")

    def run(self, signs):
        """Return the signs of a kind that follow."""
        found = ""
        while self.peek()[1] in signs and self.peek()[1]:
            found += signs[self.next()[1]]
        return found

    def word(self, text):
        letters = "".join(sign for sign in text if sign not in ACCENTS)
        if letters in PROSE:
            return rf"\text{{{self.space_before()}{letters}{self.space_after()}}}"
        if letters in OPERATORS:
            return rf"\{letters} "
        if letters in FUNCTIONS:
            return rf"\operatorname{{{letters}}}"
        if letters == "tau":
            return r"\tau "
        if letters == "TV":
            return r"\mathrm{TV}"
        if re.fullmatch(r"[A-Za-z]{3,}\d*", letters):
            return rf"\mathrm{{{letters}}}"
        if re.fullmatch(r"[A-Z]\d", letters):  # U1 is the papers' U with index 1
            return f"{{{letters[0]}_{{{letters[1]}}}}}"
        if re.fullmatch(r"d[A-Zafghkmpqsuvzτ]\d?", letters) and len(letters) > 1:
            return r"\mathrm{d}" + (self.word(text[1:]) if text[-1].isdigit() else self.letters(text[1:]))
        return self.letters(text)

    def letters(self, text):
        """Return letters one by one, with their accents."""
        found = []
        for sign in text:
            if sign in ACCENTS:
                found[-1] = rf"\{ACCENTS[sign]}{{{found[-1].strip()}}}"
            elif sign in GREEK:
                found.append(f"\\{GREEK[sign]} ")
            elif sign == "Σ":
                found.append(SYMBOLS[sign])
            elif sign.isascii():
                found.append(sign)
            else:
                raise ValueError(f"{sign} came, a letter was wanted")
        return "".join(found)

    def script(self):
        """Return what an index or exponent covers: a bracket, or one word or number with what it is called with."""
        kind, text = self.next()
        if text == "{":
            return self.all("}")
        if text == "(":
            return "(" + self.all(")") + ")"
        if text in ("-", "−"):
            return "-" + self.script()
        if kind == "word":
            found = self.word(text)
            if text in FUNCTIONS and self.peek()[1] == "(":
                self.next()
                found += "(" + self.all(")") + ")"
            return found
        if kind == "number" or text in SYMBOLS:
            return SYMBOLS.get(text, text)
        raise ValueError(f"script {text!r}")

    def root(self):
        kind, text = self.next()
        for left, right in ("()", "{}"):
            if text == left:
                return rf"\sqrt{{{self.all(right)}}}"
        if text == "|":
            return rf"\sqrt{{|{self.all('|')}|}}"
        if kind == "word":
            found = self.word(text)
            if text in OPERATORS:  # √log n
                self.next()
                found += self.one()
            return rf"\sqrt{{{found}}}"
        if kind == "number":
            return rf"\sqrt{{{text}}}"
        raise ValueError(f"root of {text!r}")

    def between_words(self):
        """Say whether the space just read is one of a sentence: on both sides are words, not letters."""
        around = [*self.tokens[max(0, self.place - 2) : self.place - 1], self.peek()]
        return len(around) == 2 and all(
            kind == "word" and re.fullmatch(r"[a-z]{2,}", text) and text not in OPERATORS | FUNCTIONS | PROSE
            and not text.startswith("d")
            for kind, text in around
        )  # fmt: skip

    def space_before(self):
        return " " if self.place > 1 and self.tokens[self.place - 2][0] == "space" else ""

    def space_after(self):
        return " " if self.peek()[0] == "space" else ""
