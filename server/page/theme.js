// Light, dark, or as the system. A plain script in the head, so that no page is painted in the
// wrong colours first.
(() => {
  const NAMES = { auto: "as the system", light: "light", dark: "dark" };
  const ORDER = Object.keys(NAMES);
  const root = document.documentElement;

  function stored() {
    try {
      const theme = localStorage.getItem("hyimage-theme");
      return ORDER.includes(theme) ? theme : "auto";
    } catch {
      return "auto"; // storage is off in this browser
    }
  }

  function apply(theme) {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  apply(stored());
  addEventListener("DOMContentLoaded", () => {
    const icon = document.getElementById("theme-icon");
    const text = document.getElementById("theme-text");
    let theme = stored();
    const show = () => {
      icon.setAttribute("href", `page/icons.svg#${theme}`);
      text.textContent = `Theme: ${NAMES[theme]}`;
    };
    show();
    document.getElementById("theme-button").addEventListener("click", () => {
      theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
      try {
        localStorage.setItem("hyimage-theme", theme);
      } catch {
        // it holds until the page is left
      }
      apply(theme);
      show();
    });
  });
})();
