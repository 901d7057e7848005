"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const value = (row, at) => {
    const cell = row.cells[at];
    const number = cell.getAttribute("data-sort");
    return number === null ? cell.textContent.trim() : Number(number);
  };
  // Numbers stand before words, empty cells and dashes last in both directions.
  const empty = (v) => v === "" || v === "\u2013" || v === "\u2014" || v === "-";
  const compare = (a, b) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b);
  };
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    while (head.firstChild) button.appendChild(head.firstChild);
    head.appendChild(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const rows = Array.from(body.rows, (row) => [value(row, at), row]);
      rows.sort(([a], [b]) => empty(a) - empty(b) || sign * compare(a, b));
      for (const [, row] of rows) body.appendChild(row);
    });
  });
}
