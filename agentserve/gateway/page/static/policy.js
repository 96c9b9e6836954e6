// Which policy places calls, and with which settings? Read once; a gateway's policy does not change while it runs.

import { byId, el, setText } from "./dom.js";

const SECTIONS = [
  ["parameters", "Parameters of the policy"],
  ["migration", "Moves of running calls"],
  ["settings", "Limits of the gateway"],
];

export async function loadPolicy() {
  const answer = await fetch("v1/policy");
  if (!answer.ok) throw new Error(`the policy could not be read: ${answer.status}`);
  const told = await answer.json();
  setText(byId("policy-name"), told.policy);
  setText(byId("cluster-name"), told.settings.cluster);
  setText(byId("policy-note"), `${told.policy} places every call of this gateway`);
  byId("policy").replaceChildren(el("div", { class: "settings" }, ...SECTIONS.map(([key, title]) => section(title, told[key] ?? {}))));
}

function section(title, values) {
  const entries = Object.entries(values);
  const list = el("dl", { class: "facts" },
    ...entries.flatMap(([name, value]) => [el("dt", { class: "mono" }, name), el("dd", {}, written(value))]));
  return el("div", {}, el("h3", {}, title), entries.length ? list : el("p", { class: "muted" }, "none"));
}

function written(value) {
  if (value === null) return "not set";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 6 }) : String(value);
}
