// Elements from JavaScript. Text is set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element; `on...` attributes are listeners, `data` its data-* values, null is left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name in element && name !== "list" && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a symbol of icons.svg; screen readers pass over it. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `page/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Return a drawing of a width and height, within a square of `side`. */
export function rectangle(width, height, side) {
  const scale = (side - 4) / Math.max(width, height);
  const [w, h] = [width * scale, height * scale];
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${side} ${side}`);
  svg.setAttribute("aria-hidden", "true");
  const rect = document.createElementNS(SVG, "rect");
  const values = { x: (side - w) / 2, y: (side - h) / 2, width: w, height: h, rx: 2.5 };
  for (const [name, value] of Object.entries(values)) rect.setAttribute(name, value.toFixed(2));
  svg.append(rect);
  return svg;
}

/** Return the element with an id; the page's own HTML has it. */
export function byId(id) {
  return document.getElementById(id);
}

/** Let screen readers announce a text; the focus stays. */
export function announce(text) {
  byId("announcer").textContent = text;
}
