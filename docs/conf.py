"""Sphinx's configuration: ``sphinx-build -W --keep-going -n docs docs/_build/html``.

It needs the extra ``docs`` and no network.
The reference is generated from the docstrings of what the public packages export.
"""

import shutil
import sys
from importlib import import_module, metadata
from pathlib import Path
from pydoc import locate

from docutils import nodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from refattn._version import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
sys.path.insert(1, str(Path(__file__).parents[1] / "asv_benchmarks"))
import commands
import curves
import formulas

LOGGER = logging.getLogger(__name__)

project = "refattn"
author = "The refattn developers"
copyright = "The refattn developers, BSD-3-Clause"
version = release = __version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "_templates", "_extensions", "paper"]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["refattn.css"]

# Formulas are Unicode in code spans and indented blocks, which read the same in an editor and at a terminal; here
# `SetFormulas` hands them to MathJax, which is one file beside the pages: they need no network.
mathjax_path = "mathjax.js"
mathjax3_config = {"svg": {"fontCache": "local"}, "options": {"enableMenu": False}}
myst_enable_extensions = ["colon_fence", "dollarmath"]
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
html_context = {"default_mode": "auto"}
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
    "refattn.patterns",
    "refattn.masks",
    "refattn.tuning",
    "refattn.testing",
    "refattn.testing.conformance",
    "refattn.testing.real_heads",
    "refattn.testing.vectors",
    "refattn.models",
    "refattn.models.layers",
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


class SetFormulas(SphinxTransform):
    """Make formulas of the code spans and blocks that are formulas; those of a line may break where they should."""

    default_priority = 500

    def apply(self, **kwargs):
        """Replace the nodes; what is marked as a formula, ``$b_i$``, is one whatever its signs."""
        for node in [*self.document.findall(nodes.math)]:
            self.replace(node, self.inline)
        for node in [*self.document.findall(nodes.literal)]:
            if formulas.is_formula(node.astext()) and not isinstance(node.parent, nodes.title):
                self.replace(node, self.inline)
        for node in [*self.document.findall(nodes.literal_block)]:
            if node.get("language", "default") in ("default", "none") and formulas.is_formula(node.astext()):
                self.replace(node, self.block)

    def replace(self, node, made):
        """Put what is made of a text in the place of its node, or say where no formula could be made."""
        try:
            node.replace_self(made(node.astext()))
        except ValueError as error:
            LOGGER.warning("formula %r: %s", node.astext(), error, location=node)

    def inline(self, text):
        """Return a formula's pieces, with spaces between."""
        found = []
        for piece in formulas.pieces(" ".join(text.split())):
            tex = formulas.to_tex(piece)
            found += [nodes.math(tex, tex), nodes.Text(" ")]
        return found[:-1]

    def block(self, text):
        """Return formulas of their own lines, which wrap in a narrow window."""
        made = []
        for apart, number in formulas.lines(text):
            line = nodes.paragraph(classes=["formula"])
            for parts in apart:
                one = nodes.inline(classes=["apart"])
                for part in parts:
                    one += [self.displayed(part), nodes.Text(" ")]
                line += [one, nodes.Text(" ")]
            line += nodes.inline(number, number, classes=["number"])
            made.append(line)
        return made

    def displayed(self, part):
        """Return a piece of a formula, or the words beside one."""
        if formulas.is_prose(part):
            return nodes.Text(part)
        tex = formulas.to_tex(part)
        return nodes.math(tex, rf"\displaystyle {tex}")


def ship_mathjax(app, exception):
    """Put MathJax beside the pages, out of the package of the extra ``docs`` that holds it."""
    if exception is None and app.builder.format == "html":
        (file,) = (f for f in metadata.files("sphinx-mathjax-offline") if f.match("mathjax/tex-svg.js"))
        shutil.copyfile(file.locate(), Path(app.outdir) / "_static" / mathjax_path)


def write_benchmarks(app, exception):
    """Put the page of asv's curves beside the others."""
    if exception is None and app.builder.format == "html":
        page = curves.render(curves.HERE / "results/release")
        (Path(app.outdir) / "benchmarks.html").write_text(page, encoding="utf-8")


def write_command_line(app):
    """Write the page of the command line, from its parser."""
    page = Path(app.srcdir) / "reference" / "generated" / "command-line.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(commands.page(), encoding="utf-8")


def setup(app):
    """Register `resolve` and the formulas with Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("builder-inited", write_command_line)
    app.connect("build-finished", ship_mathjax)
    app.connect("build-finished", write_benchmarks)
    app.add_transform(SetFormulas)
