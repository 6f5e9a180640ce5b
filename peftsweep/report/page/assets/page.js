"use strict";

// Sorting: a button in each header cell. What has no value stays last, whichever way one sorts.
function valueOf(row, column) {
  const text = row.cells[column].dataset.sort;
  if (text === undefined || text === "") return null;
  return isNaN(text) ? text.toLowerCase() : Number(text);
}

function compareValues(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(header) {
  const table = header.closest("table");
  const body = table.tBodies[0];
  const before = header.getAttribute("aria-sort");
  const first = header.querySelector("button").dataset.first;
  const other = first === "ascending" ? "descending" : "ascending";
  const order = before === first ? other : first;
  for (const cell of header.parentElement.cells) cell.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", order);
  const side = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].sort((one, two) => {
    const a = valueOf(one, header.cellIndex);
    const b = valueOf(two, header.cellIndex);
    if (a === null || b === null) return (a === null) - (b === null);
    return side * compareValues(a, b);
  });
  body.append(...rows);
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

// Filtering: all words of the field must be in a row, and the row must be of the kind asked for.
function filterTable(id) {
  const part = (name) => document.querySelector(`[data-${name}="${id}"]`);
  const words = part("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = part("state") ? part("state").value : "";
  const rows = [...part("table").tBodies[0].rows];
  let shown = 0;
  for (const row of rows) {
    const text = [...row.querySelectorAll("th, .words")].map((cell) => cell.textContent).join(" ").toLowerCase();
    const fits = words.every((word) => text.includes(word)) && (!state || row.dataset.states.split("|").includes(state));
    row.hidden = !fits;
    shown += fits;
  }
  part("count").textContent = `${shown} of ${rows.length}`;
  part("none").hidden = shown > 0;
}

for (const field of document.querySelectorAll("[data-filter], [data-state]")) {
  field.addEventListener("input", () => filterTable(field.dataset.filter || field.dataset.state));
}

// Light or dark: as the system says, until somebody chooses. A page from disk may not be allowed to remember.
const THEME = "peftsweep-theme";
const root = document.documentElement;
const themeButton = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function remembered() {
  try { return localStorage.getItem(THEME); } catch { return null; }
}

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
}

function labelTheme() {
  themeButton.textContent = isDark() ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", isDark() ? "Show a light page" : "Show a dark page");
}

themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem(THEME, root.dataset.theme); } catch { /* not remembered */ }
  labelTheme();
});
prefersDark.addEventListener("change", labelTheme);
if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
labelTheme();

// On paper, what is folded away can't be opened.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
