// Finished images in this browser: IndexedDB, with their bytes, because URLs expire. Where a
// browser keeps nothing (private windows, full disks), they last as long as the page. Beside them the
// input images of tasks that run: session storage, which has the tasks, is too small for them.

const NAME = "hyimage";
const IMAGES = "images";
const INPUTS = "inputs"; // taskUUID -> data URIs
const MAX_IMAGES = 300;

export class Store {
  #db = null;

  /** Whether images outlive the page. */
  get keeps() {
    return this.#db !== null;
  }

  static async open() {
    const store = new Store();
    try {
      const request = indexedDB.open(NAME, 2);
      request.onupgradeneeded = ({ oldVersion }) => {
        if (oldVersion < 1) request.result.createObjectStore(IMAGES, { keyPath: "id" });
        request.result.createObjectStore(INPUTS);
      };
      store.#db = await result(request);
      store.#db.onversionchange = () => store.#db.close(); // another tab has a newer page
    } catch {
      store.#db = null;
    }
    return store;
  }

  /** Return all images, newest first. */
  async list() {
    if (!this.#db) return [];
    try {
      const images = await result(this.#images("readonly").getAll());
      return images.sort((a, b) => b.createdAt - a.createdAt);
    } catch {
      return [];
    }
  }

  /** Keep an image; the oldest ones give way. Return whether it is kept. */
  async put(image) {
    if (!this.#db) return false;
    try {
      await result(this.#images("readwrite").put(image));
      const all = await this.list();
      for (const old of all.slice(MAX_IMAGES)) await this.delete(old.id);
      return true;
    } catch {
      return false; // the quota is used up
    }
  }

  async delete(id) {
    if (this.#db) await result(this.#images("readwrite").delete(id));
  }

  async clear() {
    if (this.#db) await result(this.#images("readwrite").clear());
  }

  /** Keep the input images of a task that runs. Return whether they are kept. */
  async putInputs(taskUUID, uris) {
    if (!this.#db) return false;
    try {
      await result(this.#inputs("readwrite").put(uris, taskUUID));
      return true;
    } catch {
      return false;
    }
  }

  /** Return the input images of a task, if they are kept. */
  async inputsOf(taskUUID) {
    return this.#db ? result(this.#inputs("readonly").get(taskUUID)).catch(() => undefined) : undefined;
  }

  async deleteInputs(taskUUID) {
    if (this.#db) await result(this.#inputs("readwrite").delete(taskUUID)).catch(() => {});
  }

  #images(mode) {
    return this.#db.transaction(IMAGES, mode).objectStore(IMAGES);
  }

  #inputs(mode) {
    return this.#db.transaction(INPUTS, mode).objectStore(INPUTS);
  }
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
}
