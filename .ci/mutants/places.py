"""Places of a source where an error of the kind that numerical code suffers from can be put.

An operator or a comparison is exchanged, also with its border; a constant is changed, so a default too; a slice or a
range is one off; a sign, a ``not`` or the second part of a sum is dropped, or a keyword; least and greatest are
swapped; a condition is inverted; a call, an update in place, a raise, a break or a continue is removed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FLIPPED = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
}  # fmt: skip
SWAPPED = {"min": "max", "minimum": "maximum", "argmin": "argmax", "any": "all", "floor": "ceil", "zeros": "ones"}
SWAPPED |= {"zeros_like": "ones_like", "left": "right"}
SWAPPED |= {wrong: right for right, wrong in SWAPPED.items()}
SIMPLE = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)


class Mutant(NamedTuple):
    """One change: file and function, the lines before and after, and the bytes from `start` to `end` to replace."""

    file: str
    scope: str
    right: str
    wrong: str
    start: int
    end: int
    text: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is known by, wherever in the file it stands."""
        return self[:4]

    def source(self, right: bytes) -> bytes:
        """Return the source with the change."""
        return right[: self.start] + self.text.encode() + right[self.end :]

    def __str__(self) -> str:
        """Return it as ``equivalent.txt`` has it, without the reason."""
        lines = [("- ", x) for x in self.right.splitlines()] + [("+ ", x) for x in self.wrong.splitlines()]
        return "\n".join([f"{self.file} {self.scope}", *(sign + line for sign, line in lines)])


class Places:
    """All changes of a source.

    What stands in annotations, decorators, assertions and messages stays, and so do seeds and tables of cases: others
    would do as well.
    """

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.starts = [0, *(place + 1 for place, byte in enumerate(self.source) if byte == 10)]
        self.found: list[tuple[str, int, int, str]] = []
        self.scope = "module"
        self.walk(ast.parse(source))

    def walk(self, node: ast.AST) -> None:
        """Collect the changes of a node and of all below it."""
        if isinstance(node, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in self.text(node.test):
            return
        if isinstance(node, ast.Assign) and self.text(node.targets[0]) == "CASES":
            return
        if isinstance(node, ast.Call) and self.text(node.func).endswith("default_rng"):
            return
        self.offer(node)
        outer, below = self.scope, list(ast.iter_child_nodes(node))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if node.name == "__repr__":
                return
            self.scope = node.name if outer == "module" else f"{outer}.{node.name}"
            defaults = [*node.args.defaults, *node.args.kw_defaults] if isinstance(node, ast.FunctionDef) else []
            below = [*filter(None, defaults), *node.body]
        elif isinstance(node, ast.AnnAssign):
            below = [node.value] if node.value else []
        elif isinstance(node, ast.Raise):
            below = []
        for child in below:
            self.walk(child)
        self.scope = outer

    def offer(self, node: ast.AST) -> None:
        """Collect the changes of a node itself."""
        match node:
            case ast.Compare(left, ops, comparators):
                for before, op, after in zip([left, *comparators], ops, comparators, strict=False):
                    self.flip(before, op, after)
            case ast.BoolOp(op, [first, second, *_]):
                self.flip(first, op, second)
                self.put(node, self.kept(first))
            case ast.BinOp(left, op, right) if not any(map(is_text, (left, right))):
                self.flip(left, op, right)
                if isinstance(op, (ast.Add, ast.Sub)):
                    self.put(node, self.kept(left))
            case ast.AugAssign(target, op, value):
                self.flip(target, op, value)
                self.put(node, "pass")
            case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
                self.put(node, self.kept(operand))
            case ast.Constant(bool(value)):
                self.put(node, repr(not value))
            case ast.Constant(int(value)):
                self.put(node, repr(value + 1))
            case ast.Constant(float(value)):
                self.put(node, repr(2 * value or 1.0))
            case ast.Constant("left" | "right" as side):
                self.put(node, repr(SWAPPED[side]))
            case ast.Slice(lower, upper):
                self.shift(lower, "+ 1")
                self.shift(upper, "- 1")
            case ast.If(test) | ast.IfExp(test=test) if isinstance(test, SIMPLE):
                self.put(test, f"not {self.text(test)}")
            case ast.Expr(ast.Call()) | ast.Raise() | ast.Continue() | ast.Break():
                self.put(node, "pass")
            case ast.Assign(targets) if all(isinstance(x, (ast.Subscript, ast.Attribute)) for x in targets):
                self.put(node, "pass")
        if isinstance(node, ast.Call):
            self.offer_call(node)

    def offer_call(self, call: ast.Call) -> None:
        """Collect the changes of a call: another function, a shorter range, a keyword less."""
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        if name in SWAPPED:
            self.put(call.func, self.text(call.func)[: -len(name)] + SWAPPED[name])
        if name == "range":
            self.shift(call.args[min(1, len(call.args) - 1)], "- 1")
        given = sorted([*call.args, *call.keywords], key=lambda x: self.span(x)[0])
        for place, argument in enumerate(given):
            if isinstance(argument, ast.keyword) and argument.arg not in (None, "seed", "most_is"):
                start, end = self.span(argument)
                if place:
                    start = self.span(given[place - 1])[1]
                elif len(given) > 1:
                    end = self.span(given[1])[0]
                self.found.append((self.scope, start, end, ""))

    def flip(self, before: ast.AST, op: ast.AST, after: ast.AST) -> None:
        """Replace the operator between two nodes."""
        if type(op) in FLIPPED:
            right, wrong = FLIPPED[type(op)]
            start, end = self.span(before)[1], self.span(after)[0]
            self.found.append((self.scope, start, end, self.source[start:end].decode().replace(right, wrong, 1)))

    def shift(self, node: ast.AST | None, by: str) -> None:
        """Move the end of a range; a constant is changed elsewhere."""
        if node is not None and not isinstance(node, ast.Constant):
            self.put(node, f"{self.kept(node)} {by}")

    def put(self, node: ast.AST, text: str) -> None:
        """Replace a node."""
        self.found.append((self.scope, *self.span(node), text))

    def kept(self, node: ast.AST) -> str:
        """Return the text of a node, in brackets where it could fall apart."""
        return self.text(node) if isinstance(node, SIMPLE) else f"({self.text(node)})"

    def text(self, node: ast.AST) -> str:
        """Return the text of a node."""
        start, end = self.span(node)
        return self.source[start:end].decode()

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return where a node begins and ends, in bytes."""
        first, last = self.starts[node.lineno - 1], self.starts[node.end_lineno - 1]
        return first + node.col_offset, last + node.end_col_offset

    def mutants(self, file: str) -> Iterator[Mutant]:
        """Yield the changes as mutants of a file."""
        for scope, start, end, text in self.found:
            first, last = self.source.rfind(b"\n", 0, start) + 1, self.source.find(b"\n", end)
            around = self.source[first:start].decode(), self.source[end:last].decode()
            lines = (x.join(around).splitlines() for x in (self.source[start:end].decode(), text))
            right, wrong = ("\n".join(map(str.strip, x)) for x in lines)
            yield Mutant(file, scope, right, wrong, start, end, text)


def is_text(node: ast.AST) -> bool:
    """Whether + and * of a node do not compute."""
    return isinstance(node, (ast.JoinedStr, ast.List, ast.Tuple)) or (
        isinstance(node, ast.Constant) and not isinstance(node.value, (int, float))
    )


def mutants_of(path: Path, file: str) -> Iterator[Mutant]:
    """Yield the mutants of a file."""
    return Places(path.read_bytes()).mutants(file)


def is_python(source: bytes) -> bool:
    """Whether a change has left a program; a keyword dropped may take a bracket with it."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True
