"""Sphinx's configuration: ``sphinx-build -W --keep-going -n docs docs/_build/html``.

It needs the extra ``docs`` and no network.
The reference is generated from the docstrings of what the public packages export.
"""

from importlib import import_module
from pydoc import locate

from refattn._version import __version__

project = "refattn"
author = "The refattn developers"
copyright = "The refattn developers, BSD-3-Clause"
version = release = __version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

# Formulas are Unicode in code spans and indented blocks, which read the same on GitHub, in an editor and here.
highlight_language = "none"
pygments_style = "friendly"
myst_heading_anchors = 3

# `name` in a docstring is a link where it names something public, and emphasised where it is a parameter.
default_role = "autolink"
autosummary_generate = True
autosummary_imported_members = True  # with __all__ respected: a package's page shows what it exports
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # types and shapes stand in the docstrings, which say more than annotations can
numpydoc_show_class_members = False  # the class template lists them
nitpick_ignore = [("py:obj", "pathlib.Path")]  # another project's name: there is no network to link through
suppress_warnings = ["config.cache"]  # the template's functions below are not kept from one build to the next

html_theme = "pydata_sphinx_theme"
html_title = f"refattn {release}"
html_theme_options = {
    "navigation_depth": 2,
    "show_toc_level": 2,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
html_show_sourcelink = False

PACKAGES = (
    "refattn",
    "refattn.convbasis",
    "refattn.sparsek",
    "refattn.lowrank",
    "refattn.masks",
    "refattn.tuning",
    "refattn.testing",
    "refattn.testing.conformance",
    "refattn.testing.real_heads",
    "refattn.testing.vectors",
    "refattn.models",
    "refattn.training",
    "refattn.experiments",
    "refattn.report",
)


def _homes():
    """Map every public name to the shortest one of the same object, under which it is documented once."""
    home, names = {}, {}
    for package in PACKAGES:
        module = import_module(package)
        for name in getattr(module, "__all__", ()):
            names[f"{package}.{name}"] = home.setdefault(id(getattr(module, name)), f"{package}.{name}")
    return names


HOMES = _homes()
BY_LAST_NAME = {full.rpartition(".")[2]: home for full, home in HOMES.items()}


def properties_of(name):
    """Return the properties a class defines itself; its fields are in the docstring's Attributes."""
    return [key for key, value in vars(locate(name)).items() if isinstance(value, property)]


def tables(module, items):
    """Return what a package's page lists: names that have their page here, and names that have it elsewhere."""
    home = {name: HOMES[f"{module}.{name}"] for name in items}
    return [n for n in items if home[n] == f"{module}.{n}"], [home[n] for n in items if home[n] != f"{module}.{n}"]


autosummary_context = {"tables": tables, "properties_of": properties_of}


def resolve(app, env, node, contnode):
    """Link any public name of an object to its page; leave a name without a dot, such as a parameter, as it is."""
    if node.get("reftype") != "obj":
        return None
    target = HOMES.get(node["reftarget"]) or BY_LAST_NAME.get(node["reftarget"])
    if target is not None:
        python = env.get_domain("py")
        return python.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)
    return None if "." in node["reftarget"] else contnode


def setup(app):
    """Register `resolve` with Sphinx."""
    app.connect("missing-reference", resolve)
