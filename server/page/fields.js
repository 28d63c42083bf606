// Parts of the form: a number with a slider, a row of choices, a searchable list.

import { make } from "./dom.js";

/** Fill `container` with a number that has a slider; return {value, set}. */
export function numberField(container, { id, label, min, max, most, step, value }) {
  const input = make("input", { id, inputmode: "decimal", autocomplete: "off" });
  // The slider ends at `most`, where useful values end; the field takes all that the API takes.
  const slider = make("input", {
    type: "range",
    min: String(min),
    max: String(most),
    step: String(step),
    "aria-label": label,
  });
  const grain = step < 1 ? 0.01 : 1; // what the API takes
  const clamp = (number) => Math.min(max, Math.max(min, Math.round(number / grain) * grain));
  const field = {
    value: value,
    set(number) {
      field.value = Number(clamp(Number.isFinite(number) ? number : value).toFixed(2));
      input.value = String(field.value);
      slider.value = String(field.value);
    },
  };
  slider.addEventListener("input", () => field.set(Number(slider.value)));
  input.addEventListener("change", () =>
    field.set(Number.parseFloat(input.value.replace(",", "."))),
  );
  container.append(
    make("div", { class: "label-row" }, make("label", { for: id }, label), input),
    slider,
  );
  field.set(value);
  return field;
}

/** Fill `container` with choices of which one holds; return {value, set}. */
export function segments(container, name, choices, value, onChange = () => {}) {
  const radios = Object.entries(choices).map(([choice, text]) => {
    const radio = make("input", { type: "radio", name, value: choice, "aria-label": text });
    radio.addEventListener("change", () => onChange(choice));
    container.append(make("label", { class: "segment" }, radio, make("span", {}, text)));
    return radio;
  });
  const field = {
    get value() {
      return radios.find((radio) => radio.checked)?.value;
    },
    set(choice) {
      const chosen = radios.find((radio) => radio.value === choice) ?? radios[0];
      chosen.checked = true;
      onChange(chosen.value);
    },
  };
  field.set(value);
  return field;
}

/** Make `input` and `list` a searchable choice of `options` ({name, note}); return {value, set}. */
export function combobox(input, list, options, value, onChange = () => {}) {
  let shown = [];
  let active = -1;
  const field = { value, set };

  function set(name) {
    field.value = options.some((option) => option.name === name) ? name : value;
    input.value = field.value;
    close();
    onChange(field.value);
  }

  function open(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    shown = options.filter((o) =>
      words.every((w) => `${o.name} ${o.note}`.toLowerCase().includes(w)),
    );
    list.replaceChildren(
      ...shown.map((option, index) =>
        make(
          "li",
          {
            role: "option",
            id: `${list.id}-${index}`,
            onpointerdown: (event) => {
              event.preventDefault();
              set(option.name);
            },
          },
          make("span", {}, option.name),
          make("small", {}, option.note),
        ),
      ),
    );
    if (!shown.length)
      list.append(
        make(
          "li",
          { class: "none", role: "option", "aria-disabled": "true" },
          "No scheduler has these words",
        ),
      );
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    activate(
      Math.max(
        0,
        shown.findIndex((option) => option.name === field.value),
      ),
    );
  }

  function activate(index) {
    active = shown.length ? (index + shown.length) % shown.length : -1;
    [...list.children].forEach((item, i) =>
      item.setAttribute("aria-selected", String(i === active)),
    );
    if (active < 0) return;
    input.setAttribute("aria-activedescendant", `${list.id}-${active}`);
    list.children[active].scrollIntoView({ block: "nearest" });
  }

  function close() {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  const keys = {
    ArrowDown: () => (list.hidden ? open("") : activate(active + 1)),
    ArrowUp: () => (list.hidden ? open("") : activate(active - 1)),
    Enter: () => (list.hidden || active < 0 ? null : set(shown[active].name)),
    Escape: () => set(field.value),
  };
  input.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
    if (event.key !== "Escape" || !list.hidden) event.preventDefault();
    keys[event.key]();
  });
  input.addEventListener("input", () => open(input.value));
  input.addEventListener("click", () => {
    input.select();
    open("");
  });
  input.addEventListener("blur", () => set(field.value));
  set(value);
  return field;
}
