// The sizes of the checkpoint in the form, drawn as shapes.

import { byId, make, rectangle } from "./dom.js";

const AUTO = "auto"; // the checkpoint chooses by the prompt
const SIDE_PX = 36;

export class ShapeField {
  #radios;

  constructor(config) {
    const names = [AUTO, ...config.sizes.map(([width, height]) => `${width}x${height}`)];
    this.#radios = names.map((name) => {
      const text = name === AUTO ? "automatic" : `${name.replace("x", " by ")} pixels`;
      const attributes = { type: "radio", name: "shape", value: name, "aria-label": text };
      const radio = make("input", attributes);
      radio.addEventListener("change", () => this.set(name));
      const drawing =
        name === AUTO
          ? make("span", { class: "auto" }, "Auto")
          : rectangle(...name.split("x").map(Number), SIDE_PX);
      byId("shapes").append(make("label", { class: "shape", title: text }, radio, drawing));
      return radio;
    });
    this.set(config.defaultSize);
  }

  /** [width, height] in pixels, or nothing for the checkpoint's choice. */
  get size() {
    const { value } = this.#radios.find((radio) => radio.checked);
    return value === AUTO ? [] : value.split("x").map(Number);
  }

  /** Choose WIDTHxHEIGHT; a size that the checkpoint lacks means its own choice. */
  set(name) {
    (this.#radios.find((radio) => radio.value === name) ?? this.#radios[0]).checked = true;
    byId("shape-note").textContent = this.size.join(" × ") || "chosen by the checkpoint";
  }

  disable(isDisabled) {
    for (const radio of this.#radios) radio.disabled = isDisabled;
  }
}
