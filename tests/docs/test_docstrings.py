"""Every public name says what it takes, gives, refuses and costs, where it comes from, and shows it."""

import inspect
import re
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import pytest

import refattn

validate = pytest.importorskip("numpydoc.validate").validate
get_doc_object = pytest.importorskip("numpydoc.docscrape").get_doc_object

IGNORED = {
    "ES01": "a summary line that says everything needs no second paragraph",
    "SA01": "See Also where there is something else to see",
    "SS05": "a function that is a quantity is named by it ('Gradients of …'), which the check takes for a verb",
    "PR08": "a description may begin with a dtype or a symbol",
    "RT04": "the same, for what is returned",
}
NOT_FOR_METHODS = {"EX01": "the class shows them at work", "RT01": "a summary of one line says what is returned"}


def public_names():
    """Yield (name, object) for all names that the public modules with an ``__all__`` export, every object once."""
    seen = set()
    root = Path(refattn.__file__).parent
    for file in sorted(root.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        parts = file.relative_to(root.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if "._" in module or "__all__" not in file.read_text(encoding="utf-8"):
            continue
        exported = import_module(module)
        for name in exported.__all__:
            item = getattr(exported, name)
            if id(item) not in seen and (inspect.isclass(item) or inspect.isroutine(item)):
                seen.add(id(item))
                yield f"{module}.{name}", item


def public_methods(owner):
    """Return the names of the methods a class defines itself, properties and inherited ones apart."""
    return [
        name
        for name, member in vars(owner).items()
        if not name.startswith("_") and inspect.isroutine(getattr(member, "__func__", member))
    ]


def is_record(item, doc):
    """Whether a class is made by the package for the user to read: its fields are documented, not its parameters."""
    protocol = getattr(item, "_is_protocol", False)  # nobody makes one at all
    return protocol or (inspect.isclass(item) and bool(doc["Attributes"]) and not doc["Parameters"])


def undocumented_fields(item, doc):
    if getattr(item, "_is_protocol", False):
        return []
    documented = {name for entry in doc["Attributes"] for name in entry.name.split(", ")}
    return sorted(set(inspect.signature(item).parameters) - documented)


def refuses_something(item):
    """Whether a name checks what it is given: functions of more than switches do, classes if their code says so."""
    if not inspect.isclass(item):
        return any(p.annotation != "bool" for p in inspect.signature(item).parameters.values())
    own = [vars(item).get(name) for name in ("__init__", "__post_init__")]
    written = [f for f in own if inspect.isfunction(f) and f.__code__.co_filename == inspect.getfile(item)]
    text = "".join(inspect.getsource(function) for function in written)
    return re.search(r"raise |\bas_\w+\(|require_", text) is not None


def described_elsewhere(entry):
    """Return the name that an entry refers to, "As for `name`", or None if it describes its parameters itself."""
    found = re.search(r"[Aa]s for `([\w.]+)`", " ".join(entry.desc))
    return found and found[1]


def named_object(name, item):
    """Return what a docstring means by a name: something beside it, something of `refattn`, or a dotted path."""
    for owner in (inspect.getmodule(item), refattn):
        try:
            return attrgetter(name)(owner)
        except AttributeError:
            pass
    found = re.match(r"refattn\.(.+)", name)
    return attrgetter(found[1])(refattn) if found else None


def broken_references(item, doc):
    """Return the entries that refer to a place where their parameters are not described either."""
    errors = []
    for entry in doc["Parameters"]:
        if (name := described_elsewhere(entry)) is None:
            continue
        target = named_object(name, item)
        described = get_doc_object(target, config={"show_class_members": False})["Parameters"] if target else []
        there = {one for e in described if described_elsewhere(e) is None for one in e.name.split(", ")}
        named = [one for one in entry.name.split(", ") if not one.startswith("*")]  # **options are all that it takes
        missing = [one for one in named if one not in there]
        errors += [f"{', '.join(missing)}: not described by {name!r}"] if missing else []
    return errors


def own_errors(item, doc, text):
    """Return what numpydoc does not look at: shapes, dtypes, errors, complexity, source, an example that runs."""
    errors = broken_references(item, doc)
    record = is_record(item, doc)
    if record and (missing := undocumented_fields(item, doc)):
        errors.append(f"fields {missing} are not documented")
    entries = [*doc["Parameters"], *doc["Returns"], *doc["Attributes"]]
    arrays = [e for e in entries if re.search(r"array", e.type) and described_elsewhere(e) is None]
    shapeless = [entry for entry in arrays if "shape" not in entry.type + " ".join(entry.desc)]
    errors += [f"{entry.name or entry.type!r} has no shape" for entry in shapeless]
    referred = any(described_elsewhere(entry) for entry in doc["Parameters"])
    if arrays and not referred and not re.search(r"float32|float64|dtype|of int|of bool|precision", text):
        errors.append("no dtype")
    if refuses_something(item) and not doc["Raises"]:
        errors.append("no Raises")
    examples = [line for line in text.splitlines() if ">>>" in line]
    if not any("+SKIP" not in line and "import" not in line for line in examples):
        errors.append("no example that runs")
    notes = " ".join(doc["Notes"])
    if "O(" not in text and not record and not (inspect.isclass(item) and issubclass(item, Exception)):
        errors.append("no complexity")
    if "Source: " not in notes and not record:
        errors.append("no source in its Notes")
    return errors


def docstring_errors(item):
    """Return everything that is wrong with a docstring and those of its methods, as sentences."""
    text = inspect.getdoc(item) or ""
    if not text:
        return ["no docstring"]
    doc = get_doc_object(item, config={"show_class_members": False})  # only what is written, nothing made up
    errors = [f"{code}: {message}" for code, message in checked(item) if not (code == "PR01" and is_record(item, doc))]
    errors += own_errors(item, doc, text)
    for method in public_methods(item) if inspect.isclass(item) else ():
        found = checked(getattr(item, method))
        errors += [f"{method}: {code}: {message}" for code, message in found if code not in NOT_FOR_METHODS]
    return errors


def checked(item):
    return [(code, message) for code, message in validate(get_doc_object(item))["errors"] if code not in IGNORED]


@pytest.mark.parametrize("item", [pytest.param(item, id=name) for name, item in public_names()])
def test_a_public_name_is_fully_documented(item):
    assert docstring_errors(item) == []


COMPLETE = """Multiply an array by a number.

Parameters
----------
x : array_like, shape (n,)
    What is multiplied; float32 or float64.
factor : float
    By what.

Returns
-------
ndarray, shape (n,)
    The product.

Raises
------
TypeError
    `x` is not numeric.

Notes
-----
Time and memory O(n). Source: ours.

Examples
--------
>>> scaled([1.0], 2.0)
array([2.])
"""


def documented(text):
    def scaled(x, factor):
        return factor * x

    scaled.__doc__ = text
    return scaled


def test_a_complete_docstring_has_no_errors():
    assert docstring_errors(documented(COMPLETE)) == []


@pytest.mark.parametrize(
    ("part", "replacement", "error"),
    [
        pytest.param(COMPLETE, "", "no docstring", id="all of it"),
        pytest.param("factor : float\n    By what.\n", "", "PR01", id="a parameter"),
        pytest.param("factor : float", "faktor : float", "PR02", id="a wrong name"),
        pytest.param("factor : float", "factor", "PR04", id="a type"),
        pytest.param("x : array_like, shape (n,)", "x : array_like", "'x' has no shape", id="the shape of an input"),
        pytest.param("ndarray, shape (n,)", "ndarray", "'ndarray' has no shape", id="the shape of the output"),
        pytest.param("; float32 or float64", "", "no dtype", id="the dtype"),
        pytest.param("Returns\n-------\nndarray, shape (n,)\n    The product.\n", "", "RT01", id="what is returned"),
        pytest.param("Raises\n------\nTypeError\n    `x` is not numeric.\n\n", "", "no Raises", id="the errors"),
        pytest.param("Time and memory O(n). ", "", "no complexity", id="the complexity"),
        pytest.param(" Source: ours.", "", "no source", id="the source"),
        pytest.param(">>> scaled([1.0], 2.0)\narray([2.])", "None.", "no example", id="the example"),
        pytest.param("2.0)\n", "2.0)  # doctest: +SKIP\n", "no example", id="an example that never runs"),
    ],
)
def test_a_missing_part_is_noticed(part, replacement, error):
    assert part in COMPLETE
    found = docstring_errors(documented(COMPLETE.replace(part, replacement)))
    assert any(error in line for line in found), found


def shifted(x, by):
    """Add a number to an array, with the arguments of `COMPLETE`.

    Parameters
    ----------
    x : array_like, shape (n,)
        What is added to; float32 or float64.
    by : float
        What is added.
    """
    return x + by


@pytest.mark.parametrize(
    ("reference", "errors"),
    [
        pytest.param("As for `shifted`.", [], id="to a place that describes it"),
        pytest.param("As for `scaled`.", ["x: not described by 'scaled'"], id="to nothing"),
        pytest.param("As for `described_elsewhere`.", ["x: not described by 'described_elsewhere'"], id="to another"),
    ],
)
def test_a_shared_parameter_is_described_once(reference, errors):
    text = COMPLETE.replace(
        "x : array_like, shape (n,)\n    What is multiplied; float32 or float64.", f"x : array_like\n    {reference}"
    )
    assert docstring_errors(documented(text)) == errors


def test_a_record_has_to_document_its_fields():
    class Pair(NamedTuple):
        """Two numbers; a record has no complexity and no source.

        Attributes
        ----------
        first : float
            The first.

        Examples
        --------
        >>> Pair(1.0, 2.0).first
        1.0
        """

        first: float
        second: float

    assert docstring_errors(Pair) == ["fields ['second'] are not documented"]


def test_a_method_has_to_document_its_parameters():
    class Store:
        """Keep things.

        Notes
        -----
        Memory O(1). Source: ours.

        Examples
        --------
        >>> Store().put(1)
        """

        def put(self, thing):
            """Keep one."""

    assert docstring_errors(Store) == ["put: PR01: Parameters {'thing'} not documented"]
