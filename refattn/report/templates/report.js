"use strict";
(() => {
  const one = (id) => document.getElementById(id);
  const rows = [...document.querySelectorAll("details.row")].map((element) => ({
    element, text: element.textContent.toLowerCase(), paper: element.dataset.paper, verdict: element.dataset.verdict,
  }));
  const groups = [...document.querySelectorAll("section.group")];
  const boxes = [...document.querySelectorAll('input[name="verdict"]')];
  const search = one("search"), paper = one("paper"), root = document.documentElement;
  for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const verdicts = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    let shown = 0;
    for (const row of rows) {
      const fits = verdicts.has(row.verdict) && (!paper.value || row.paper === paper.value)
        && words.every((word) => row.text.includes(word));
      row.element.hidden = !fits;
      shown += fits;
    }
    for (const group of groups) group.hidden = !group.querySelector("details.row:not([hidden])");
    one("count").textContent = `${shown} of ${rows.length} claims`;
    one("none").hidden = shown > 0;
  }
  function reset() {
    search.value = paper.value = "";
    for (const box of boxes) box.checked = true;
    filter();
  }
  function open(value) {
    for (const row of rows) if (!row.element.hidden) row.element.open = value;
  }
  search.addEventListener("input", filter);
  paper.addEventListener("change", filter);
  for (const box of boxes) box.addEventListener("change", filter);
  one("expand").addEventListener("click", () => open(true));
  one("collapse").addEventListener("click", () => open(false));
  one("reset").addEventListener("click", reset);
  one("reset-empty").addEventListener("click", () => { reset(); search.focus(); });
  filter(); // a browser may have kept the fields of an earlier visit

  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && event.target === search) {
      search.value = "";
      filter();
    }
  });

  function follow() { // a link to a row shows it, whatever the filter, and unfolds it
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target || !target.matches("details.row")) return;
    if (target.hidden) reset();
    target.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", follow);
  follow();

  const themes = ["system", "light", "dark"];
  const stored = { // a page opened from a file may have no storage
    get() { try { return localStorage.getItem("refattn-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("refattn-theme", value); } catch { /* not kept */ } },
  };
  function dress(theme) {
    if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
    one("theme").textContent = `Theme: ${theme}`;
  }
  let theme = themes.includes(stored.get()) ? stored.get() : "system";
  dress(theme);
  one("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    stored.set(theme);
    dress(theme);
  });

  one("copy").addEventListener("click", async () => {
    let copied = true;
    try {
      await navigator.clipboard.writeText(one("bibtex").textContent);
    } catch { // without a secure context: the old way
      getSelection().selectAllChildren(one("bibtex"));
      copied = document.execCommand("copy");
    }
    one("copied").textContent = copied ? "Copied" : "Select the text and copy it";
  });

  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const element of unfolded) element.open = true;
  });
  addEventListener("afterprint", () => { for (const element of unfolded) element.open = false; });
})();
