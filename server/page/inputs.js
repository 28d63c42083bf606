// Input images of the form: chosen, dropped or pasted; in order, as data URIs.

import { announce, byId, icon, make } from "./dom.js";

export const EXTENSIONS = {
  "image/png": "png",
  "image/jpeg": "jpg",
  "image/webp": "webp",
  "image/gif": "gif",
  "image/bmp": "bmp",
};
const NONE_TAKEN =
  "This server takes no images; an Instruct checkpoint with worker.image_inputs does.";

export class InputImages {
  #images = []; // {name, uri}
  #max;
  #isFixed = false;
  #list = byId("inputs");
  #file = byId("inputs-file");
  #add = byId("inputs-add");
  #align = byId("inputs-align");

  constructor(config) {
    this.#max = config.maxInputImages;
    this.#file.accept = Object.keys(EXTENSIONS).join(",");
    this.#add.addEventListener("click", () => this.#file.click());
    this.#file.addEventListener("change", async () => {
      await this.#take(this.#file.files);
      this.#file.value = ""; // the same file may be chosen again
    });
    document.addEventListener("paste", (event) => this.#onFiles(event, event.clipboardData));
    document.addEventListener("dragover", (event) => this.#onDrag(event, true));
    document.addEventListener("dragleave", (event) => this.#onDrag(event, false));
    document.addEventListener("drop", (event) => {
      this.#onDrag(event, false);
      this.#onFiles(event, event.dataTransfer);
    });
    this.#show();
  }

  /** What a task has of the images: nothing without any. */
  get task() {
    return this.#images.length ? { referenceImages: this.#images.map(({ uri }) => uri) } : {};
  }

  /** What `hunyuan` of a task has of them. */
  get options() {
    return this.#images.length && this.#align.checked ? { align: true } : {};
  }

  /** Show the images of a task; a server that takes none shows none. */
  set(task) {
    const uris = this.#max ? (task.referenceImages ?? []) : [];
    this.#images = uris.map((uri, index) => ({ name: `image ${index + 1}`, uri }));
    this.#align.checked = Boolean(task.hunyuan?.align);
    this.#show();
  }

  disable(isDisabled) {
    this.#isFixed = isDisabled;
    this.#show();
  }

  #onDrag(event, isOver) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault(); // else the browser leaves the page for the file
    byId("inputs-field").classList.toggle("dropping", isOver && this.#isOpen);
  }

  #onFiles(event, data) {
    if (!data?.files.length) return;
    event.preventDefault();
    this.#take(data.files);
  }

  get #isOpen() {
    return this.#max > 0 && !this.#isFixed;
  }

  async #take(files) {
    if (!this.#isOpen) return;
    const faults = [];
    for (const file of files) {
      if (this.#images.length >= this.#max) {
        faults.push(`At most ${this.#max} images; ${file.name} is left out.`);
      } else if (file.type in EXTENSIONS) {
        this.#images.push({ name: file.name, uri: await readURI(file) });
      } else {
        faults.push(`${file.name} is not PNG, JPEG, WebP, GIF or BMP.`);
      }
    }
    this.#show();
    byId("inputs-fault").textContent = faults.join(" ");
    if (!faults.length) announce(`${count(this.#images.length)} in the prompt`);
  }

  #move(index, by) {
    const [image] = this.#images.splice(index, 1);
    this.#images.splice(index + by, 0, image);
    this.#show();
    const buttons = [...this.#list.children[index + by].querySelectorAll("button")];
    const same = buttons[by < 0 ? 0 : 1];
    (same.disabled ? buttons.find((button) => !button.disabled) : same).focus();
    announce(`${image.name} is number ${index + by + 1}`);
  }

  #remove(index) {
    const [image] = this.#images.splice(index, 1);
    this.#show();
    const next = this.#list.children[Math.min(index, this.#images.length - 1)];
    (next?.querySelector(".remove") ?? this.#add).focus();
    announce(`${image.name} is removed`);
  }

  #show() {
    const { length } = this.#images;
    this.#list.replaceChildren(...this.#images.map((image, index) => this.#item(image, index)));
    this.#list.hidden = !length;
    this.#add.disabled = !this.#isOpen || length >= this.#max;
    this.#align.disabled = !this.#isOpen;
    byId("inputs-align-field").hidden = !length;
    byId("inputs-fault").textContent = "";
    byId("inputs-note").textContent = this.#max
      ? `Up to ${this.#max}; drop and paste work too. The prompt says what to change.`
      : NONE_TAKEN;
  }

  #item({ name, uri }, index) {
    const act = (text, symbol, isOff, onclick, kind) =>
      make(
        "button",
        { type: "button", class: kind, title: text, disabled: isOff || this.#isFixed, onclick },
        icon(symbol),
        make("span", { class: "unseen" }, `${text}: ${name}`),
      );
    const last = this.#images.length - 1;
    return make(
      "li",
      { class: "input" },
      make("img", { src: uri, alt: `Input image ${index + 1}: ${name}` }),
      act("Earlier", "earlier", index === 0, () => this.#move(index, -1), "earlier"),
      act("Later", "later", index === last, () => this.#move(index, 1), "later"),
      act("Remove", "close", false, () => this.#remove(index), "remove"),
    );
  }
}

/** Return the name of the file that stands for an input image in code. */
export function fileName(uri, index) {
  const type = uri.slice("data:".length, uri.indexOf(";"));
  return `input-${index + 1}.${EXTENSIONS[type] ?? "png"}`;
}

function count(number) {
  return number === 1 ? "1 image" : `${number} images`;
}

function readURI(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
