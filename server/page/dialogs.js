// The two dialogs: the API key, and an image as code.

import { byId, make } from "./dom.js";
import { listSnippets } from "./snippets.js";

/** Let the page request a key whenever the server refuses a call; several calls share one dialog. */
export function setUpKey(api) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  const button = byId("key-button");
  let answer = null;

  function request(wasRefused) {
    answer ??= open(wasRefused).finally(() => {
      answer = null;
    });
    return answer;
  }

  function open(wasRefused) {
    field.value = "";
    byId("key-fault").textContent = wasRefused ? "The server does not accept this key." : "";
    field.setAttribute("aria-invalid", String(wasRefused));
    return new Promise((resolve) => {
      dialog.onclose = () => {
        const key = dialog.returnValue === "use" ? field.value.trim() : "";
        field.value = "";
        if (key) api.setKey(key);
        resolve(Boolean(key));
      };
      dialog.returnValue = "";
      dialog.showModal();
      field.focus();
    });
  }

  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("use");
  });
  byId("key-cancel").addEventListener("click", () => dialog.close(""));
  button.addEventListener("click", () => request(false));
  api.requestKey = request;
}

/** Show an image as code, in the language that was chosen last. */
export function setUpCode(config) {
  const dialog = byId("code-dialog");
  const copy = byId("code-copy");
  let chosen = "curl";
  byId("code-close").addEventListener("click", () => dialog.close());

  return (entry) => {
    const base = new URL("v1", document.baseURI);
    const address = { http: base.href, ws: base.href.replace(/^http/, "ws") };
    const snippets = listSnippets(entry, address, config.needsKey);

    function show(name, isFocused) {
      chosen = name;
      const snippet = snippets.find((other) => other.name === name);
      byId("code-text").textContent = snippet.code;
      byId("code-note").textContent = snippet.note;
      copy.textContent = "Copy";
      for (const tab of byId("code-tabs").children) {
        const isChosen = tab.dataset.name === name;
        tab.setAttribute("aria-selected", String(isChosen));
        tab.tabIndex = isChosen ? 0 : -1;
        if (isChosen && isFocused) tab.focus();
      }
    }

    byId("code-tabs").replaceChildren(
      ...snippets.map(({ name, text }) =>
        make(
          "button",
          {
            type: "button",
            role: "tab",
            "aria-controls": "code-panel",
            data: { name },
            onclick: () => show(name, true),
          },
          text,
        ),
      ),
    );
    byId("code-tabs").onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const at = snippets.findIndex(({ name }) => name === chosen);
      show(snippets[(at + step + snippets.length) % snippets.length].name, true);
    };
    copy.onclick = async () => {
      await copyText(byId("code-text"));
      copy.textContent = "Copied";
    };
    show(chosen, false);
    dialog.showModal();
  };
}

async function copyText(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
  } catch {
    // Without TLS there is no clipboard: the text is selected instead, for Ctrl C.
    getSelection().selectAllChildren(element);
  }
}
