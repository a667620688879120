"""Look at the built documentation in a browser, from the disk and without a network, in narrow and in wide windows.

    python .ci/pages.py HTML                           every page of the folder
    python .ci/pages.py HTML --screenshots DIR PAGE…   and keep pictures of some, in both themes

A page fails if it writes an error to the console, asks for anything that is not beside it, has a formula that cannot be
set or that was not, or is wider than the window. Needs the extra "browser" and chromium.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTHS = (400, 1280)
HEIGHT = 900
PROBLEMS = """
() => {
  const found = [];
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push(`${document.documentElement.scrollWidth} wide`);
  for (const e of document.querySelectorAll("mjx-merror, [data-mjx-error]")) found.push("formula: " + e.textContent);
  for (const e of document.querySelectorAll("span.math, div.math"))
    if (!e.querySelector("mjx-container")) found.push("not set: " + e.textContent);
  const scrolls = (e) => e && e !== document.body &&
    (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  for (const e of document.querySelectorAll("article :is(h1, h2, dt.sig, p, li, img, td)")) {
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > width + 1 || box.left < -1) && !scrolls(e.parentElement))
      found.push(`cut off: ${e.tagName} ${e.textContent.slice(0, 60)}`);
  }
  for (const e of document.querySelectorAll("article img"))
    if (!e.naturalWidth) found.push("no picture: " + e.src);
  return found;
}
"""


def problems(browser, page):
    """Yield (width, what is wrong with a page in a window of that width), as sentences."""
    found = []
    tab = browser.new_page(viewport={"width": WIDTHS[0], "height": HEIGHT})
    tab.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: found.append(str(error)))
    tab.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else found.append(asked.url))
    tab.goto(page.absolute().as_uri())
    ready(tab)
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": HEIGHT})
        found += tab.evaluate(PROBLEMS)
        yield from ((width, problem) for problem in found)
        found.clear()
    tab.close()


def ready(tab):
    """Wait until the formulas are set and the pictures are there."""
    tab.evaluate("() => window.MathJax && MathJax.startup.promise")
    tab.evaluate("() => Promise.all([...document.images].map((i) => (i.loading = 'eager', i.decode().catch(() => 0))))")


def photograph(browser, page, name, folder):
    """Write pictures of a page in both widths and themes."""
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
            tab.goto(page.absolute().as_uri())
            ready(tab)
            tab.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
            tab.close()


def main(arguments=None):
    """Look at the pages; return 1 if one has a problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("html", type=Path)
    parser.add_argument("pages", nargs="*", help="relative to HTML; all of them if there are none")
    parser.add_argument("--screenshots", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    every = (page for page in options.html.rglob("*.html") if "_static" not in page.parts)
    pages = [options.html / name for name in options.pages] or sorted(every)
    failed = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for page in pages:
            name = page.relative_to(options.html)
            for width, problem in problems(browser, page):
                failed += 1
                print(f"{name}, {width} px: {problem}", file=sys.stderr)
            if options.screenshots:
                photograph(browser, page, str(name.with_suffix("")).replace("/", "-"), options.screenshots)
        browser.close()
    print(f"{len(pages)} pages looked at, {failed} problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
