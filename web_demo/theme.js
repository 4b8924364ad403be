// Light or dark: the system's choice, or the person's. Loaded before the first paint, so nothing flashes.

(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: light)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("turboserve.theme");
  } catch {
    // Storage may be forbidden. Then the choice lasts until the page is left.
  }
  const show = () => {
    root.dataset.theme = chosen ?? (system.matches ? "light" : "dark");
  };
  show();
  system.addEventListener("change", show);
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme")?.addEventListener("click", () => {
      chosen = root.dataset.theme === "light" ? "dark" : "light";
      try {
        localStorage.setItem("turboserve.theme", chosen);
      } catch {
        // See above.
      }
      show();
    });
  });
})();
