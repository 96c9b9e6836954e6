// Light or dark? As the system says, unless this reader chose otherwise; the choice is kept in this browser.

import { byId } from "./dom.js";

const KEY = "agentserve-theme";

export function setUpTheme() {
  const choice = byId("theme");
  choice.value = kept() ?? "auto";
  apply(choice.value);
  choice.addEventListener("change", () => {
    apply(choice.value);
    try {
      localStorage.setItem(KEY, choice.value);
    } catch { /* a browser that keeps nothing */ }
  });
}

function apply(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function kept() {
  try {
    const value = localStorage.getItem(KEY);
    return ["auto", "light", "dark"].includes(value) ? value : null;
  } catch {
    return null;
  }
}
