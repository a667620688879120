"""The report's page in a real browser: Debian's Chromium, driven by Playwright.

The rows are those of the ledger with numbers made up, so that every verdict and every figure occurs and nothing has to
be computed. Screenshots are left in pytest's folder for whoever wants to look at them.
"""

import dataclasses
import shutil
from collections import Counter

import pytest

from refattn.report import Measurement, run_claims, to_document
from refattn.report.claims import ALL
from refattn.report.page import render

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

LENGTHS = (4096, 8192, 16384, 65536)
DETAILS = {
    "real.conv-structure": {
        "median relative error": {f"{s} starts, k = {k}": 2.0 / k for s in ("first", "uniform") for k in (1, 128, 512)}
    },
    "fast.numerical-domain": {
        f"{dtype}: {what} at deviation {s}": 10.0 ** (s - 14)
        for dtype in ("float64", "float32") for s in (1, 4, 8, 16)
        for what in ("error of one long FFT", "error of the guarded path")
    },
    "conv.product-time": {f"seconds by FFT at n = {n}": n * 1e-7 for n in LENGTHS},
    "inference.time": {f"seconds at n = {n}": n * 2e-6 for n in LENGTHS},
}  # fmt: skip


def made_up(place, claim):
    """A claim with a number made up; every sixth does not hold, every seventh holds if, every eighth is not run."""
    if place % 8 == 7:
        return dataclasses.replace(claim, measure=None, needs=(), why_not="left out")
    condition = {"condition": "all is well", "counterexample": 9.0} if place % 7 == 6 else {}
    found = Measurement("made up", 2.0 if place % 6 == 5 else 0.5, 1.0, detail=DETAILS.get(claim.id, {}), **condition)
    return dataclasses.replace(claim, measure=lambda quick: found, needs=(), must_hold=place % 12 != 5)


@pytest.fixture(scope="module")
def report():
    return to_document(run_claims([made_up(place, claim) for place, claim in enumerate(ALL)], quick=True))


@pytest.fixture(scope="module")
def address(report, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(report), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Open the page; when the test ends, no error was printed and nothing but the file was asked for."""
    pages, errors, asked = [], [], []

    def open_page(anchor="", **options):
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address + anchor)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == []
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:,")} == {address}


def shown(page):
    """Ids of the rows that can be seen, after checking that the page counts them."""
    ids = page.evaluate(
        "[...document.querySelectorAll('details.row')].filter((e) => e.checkVisibility()).map((e) => e.id)"
    )
    assert page.locator("#count").inner_text() == f"{len(ids)} of {len(ALL)} claims"
    return ids


def ids_where(report, condition):
    return sorted(row["id"] for row in report["rows"] if condition(row))


def test_all_rows_sections_and_figures_are_there(visit, report):
    page = visit()
    assert sorted(shown(page)) == sorted(row["id"] for row in report["rows"])
    headings = page.locator(".group h3").all_inner_texts()
    assert len(headings) == len(set(headings)) == len({row["id"].partition(".")[0] for row in report["rows"]})
    assert Counter(page.locator(".row .chip").all_inner_texts()) == {v: n for v, n in report["counts"].items() if n}
    assert page.locator("figure > svg").count() == 4
    assert page.locator(".coverage tbody tr").count() == len(report["coverage"])
    assert page.locator(".alarm a").all_inner_texts() == report["failed"] != []


@pytest.mark.parametrize("paper", ["2405.05219", "2406.16747", "ours"])
def test_the_filter_by_paper(visit, report, paper):
    page = visit()
    page.select_option("#paper", paper)
    assert sorted(shown(page)) == ids_where(report, lambda row: row["paper"] == paper)


@pytest.mark.parametrize("verdict", ["holds", "holds if", "does not hold", "not run"])
def test_the_filter_by_verdict(visit, report, verdict):
    page = visit()
    page.locator(f'input[value="{verdict}"]').uncheck()
    assert sorted(shown(page)) == ids_where(report, lambda row: row["verdict"] != verdict)


def test_the_filter_by_text_and_its_reset(visit, report):
    page = visit()
    page.fill("#search", "training GRADIENT")
    found = shown(page)
    assert {"training.loss-gradient", "training.attention-gradient"} <= set(found)
    assert 0 < len(found) < 20
    page.fill("#search", "no row says this")
    assert shown(page) == []
    page.get_by_role("button", name="Reset the filters").click()
    assert len(shown(page)) == len(ALL)


def test_filters_together(visit, report):
    page = visit()
    page.select_option("#paper", "2405.05219")
    page.locator('input[value="holds"]').uncheck()
    page.fill("#search", "conv.")
    expected = ids_where(
        report, lambda row: row["paper"] == "2405.05219" and row["verdict"] != "holds" and row["id"].startswith("conv.")
    )
    assert set(expected) <= set(shown(page)) <= {row["id"] for row in report["rows"] if row["paper"] == "2405.05219"}


def test_rows_unfold_to_everything_that_is_known_of_them(visit, report):
    page = visit()
    row = page.locator('[id="fast.numerical-domain"]')
    row.locator("summary").click()
    text = row.inner_text()
    for name in ("method", "inputs", "measured", "bound", "planted error", "must hold", "time taken", "detail"):
        assert f"\n{name}\n" in text
    assert "float32: error of one long FFT at deviation 16" in text
    page.get_by_role("button", name="Expand all").click()
    assert page.locator("details.row:not([open])").count() == 0
    page.get_by_role("button", name="Collapse all").click()
    assert page.locator("details.row[open]").count() == 0


def test_the_keyboard_is_enough(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "claims"
    page.keyboard.press("/")
    page.keyboard.type("conv.rope/")  # the second one is a letter
    assert page.input_value("#search") == "conv.rope/"
    page.keyboard.press("Escape")
    assert page.input_value("#search") == ""
    assert len(shown(page)) == len(ALL)
    page.locator(".row summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".row").first.get_attribute("open") is not None
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.locator('input[value="not run"]').focus()
    page.keyboard.press("Space")
    assert len(shown(page)) < len(ALL)


def test_an_address_with_a_row_shows_it_unfolded_whatever_the_filter(visit):
    page = visit("#conv.rope")
    assert page.locator('[id="conv.rope"]').get_attribute("open") is not None
    page.fill("#search", "sparsek")
    page.evaluate("location.hash = '#dense.torch'")
    page.wait_for_function("document.getElementById('dense.torch').open")
    assert page.locator('[id="dense.torch"]').is_visible()


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_the_theme_follows_the_system_and_can_be_set(visit):
    backgrounds = {scheme: visit(color_scheme=scheme).evaluate(BACKGROUND) for scheme in ("light", "dark")}
    page = visit(color_scheme="light")
    button = page.locator("#theme")
    seen = []
    for _ in range(3):
        button.click()
        seen.append((button.inner_text(), page.evaluate(BACKGROUND)))
    assert seen == [
        ("Theme: light", backgrounds["light"]),
        ("Theme: dark", backgrounds["dark"]),
        ("Theme: system", backgrounds["light"]),
    ]


CONTRAST = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const rgb = parse(getComputedStyle(e).backgroundColor);
      if (rgb.length === 3 || rgb[3] === 1) return rgb;
    }
  };
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(parse(ink)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), name = `${element.tagName} ${element.getAttribute("class")}`;
    found[name] = Math.min(found[name] ?? 99, ratio);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(visit, scheme):
    page = visit(color_scheme=scheme)
    page.get_by_role("button", name="Expand all").click()
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 20
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


def test_the_citation_is_copied(visit, browser, report, address):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(address)
    page.get_by_role("button", name="Copy").click()
    page.wait_for_function("document.getElementById('copied').textContent")
    assert page.locator("#copied").inner_text() == "Copied"
    assert page.evaluate("navigator.clipboard.readText()") == report["citation"]["bibtex"]
    context.close()
    visit()


def test_a_figure_comes_with_its_data(visit):
    page = visit()
    figure = page.locator("#figure-product-time")
    with page.expect_download() as waiting:
        figure.get_by_role("link", name="Data as CSV").click()
    lines = waiting.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["n,by FFT", "4096.0,0.0004096"]
    figure.locator("summary").click()
    assert figure.locator("tbody tr").first.inner_text().split() == ["4,096", "0.00041"]


def test_without_javascript_everything_can_be_read(visit, report):
    page = visit(java_script_enabled=False)
    assert page.locator("details.row").count() == len(report["rows"])
    assert not page.locator(".controls").is_visible()
    page.locator(".row summary").first.click()
    assert page.locator(".row .facts").first.is_visible()


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_nothing_is_wider_than_the_window(visit, width):
    page = visit(viewport={"width": width, "height": 844})
    page.get_by_role("button", name="Expand all").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_scripts_that_are_not_the_page_s_own_do_not_run(browser, address):
    page = browser.new_page()
    page.goto(address)
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    )
    assert page.evaluate("window.ran") is None
    page.close()


@pytest.mark.slow
def test_text_of_a_row_cannot_become_markup(browser, tmp_path):
    hostile = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
    claim = dataclasses.replace(
        ALL[0],
        claim=hostile,
        measure=lambda quick: Measurement(hostile, 0.0, 1.0, detail={hostile: {hostile: hostile}}),
    )
    file = tmp_path / "report.html"
    file.write_text(render(to_document(run_claims([claim], quick=True))), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("window.ran") is None
    assert hostile in page.locator(".row summary").inner_text()
    page.close()


@pytest.mark.long
def test_screenshots(visit, tmp_path):
    for name, width, scheme in (("light", 1280, "light"), ("dark", 1280, "dark"), ("narrow", 390, "light")):
        page = visit(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.locator(".row summary").first.click()
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert (tmp_path / f"{name}.png").stat().st_size > 50_000
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
