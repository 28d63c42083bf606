// Two images of the same seed, one over the other; a slider moves the edge between them.

import { icon, make } from "./dom.js";
import { listDifferences } from "./describe.js";

/** Show two finished entries in `root`; `onEnd` closes the comparison. */
export function showComparison(root, first, second, urls, onEnd) {
  const frame = make("div", { class: "frame compare" });
  frame.style.setProperty("--w", first.width);
  frame.style.setProperty("--h", first.height);
  const differences = listDifferences(first, second);
  const [name, a, b] = differences[0] ?? ["", "first", "second"];
  const slider = make("input", {
    type: "range",
    min: "0",
    max: "100",
    step: "1",
    value: "50",
    "aria-label": "Edge between the two images, in percent of the width",
  });
  slider.addEventListener("input", () => frame.style.setProperty("--at", `${slider.value}%`));
  frame.append(
    make("img", { class: "side second", src: urls.of(second), alt: `Second image: ${name} ${b}` }),
    make("img", { class: "side first", src: urls.of(first), alt: `First image: ${name} ${a}` }),
    make("span", { class: "edge" }),
    make("span", { class: "tag first" }, name ? `${name}: ${a}` : "first"),
    make("span", { class: "tag second" }, name ? `${name}: ${b}` : "second"),
    slider,
  );
  const rows = differences.map(([label, x, y]) =>
    make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, x), make("td", {}, y)),
  );
  const table = make(
    "table",
    { class: "differences" },
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        ...["Difference", "Left", "Right"].map((text) => make("th", { scope: "col" }, text)),
      ),
    ),
    make(
      "tbody",
      {},
      rows.length ? rows : make("tr", {}, make("td", { colSpan: 3 }, "The settings are the same.")),
    ),
  );
  const end = make(
    "button",
    { type: "button", class: "action", data: { action: "end-comparison" }, onclick: onEnd },
    icon("close"),
    "Close the comparison",
  );
  root.replaceChildren(
    frame,
    make(
      "div",
      { class: "about" },
      make("div", { class: "actions" }, end),
      make("h2", { class: "caption" }, first.task.positivePrompt),
      make(
        "p",
        { class: "note" },
        `Seed ${first.seed}, ${first.width} × ${first.height}. Move the edge with the pointer or the arrow keys.`,
      ),
      table,
    ),
  );
  slider.focus({ preventScroll: true });
}
