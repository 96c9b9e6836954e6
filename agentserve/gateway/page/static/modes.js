// In which mode is the cluster served, and what did runs do in each? Asked every few seconds while somebody looks.

import { byId, el, setText } from "./dom.js";
import { clock, orDash, percent, plural, seconds } from "./format.js";

const EVERY_MS = 10_000;
const WORDS = {
  observe: "routes as the observed policy does",
  route: "our policy places calls",
  migrate: "and moves running calls",
  split: "and splits prefill from decode",
};

/** Ask now, and again for as long as the overview is shown. */
export function followModes(isShown) {
  const ask = () => {
    if (isShown() && !document.hidden) loadModes().catch(() => setText(byId("modes-note"), "could not be read"));
  };
  ask();
  setInterval(ask, EVERY_MS);
}

async function loadModes() {
  const answer = await fetch("v1/mode");
  if (!answer.ok) throw new Error(`the mode could not be read: ${answer.status}`);
  const told = await answer.json();
  const since = told.since_s === null ? "" : ` since ${clock(told.since_s)}`;
  setText(byId("modes-note"), told.problem ?? `${told.mode}${since}; switch it with: agentserve mode`);
  const rows = told.modes.flatMap((mode) => rowsOf(mode, told));
  byId("modes").tBodies[0].replaceChildren(...rows);
}

function rowsOf(mode, told) {
  const figures = told.figures?.[mode] ?? null;
  const who = mode === "observe" ? `routes as ${told.observed_policy} does` : WORDS[mode];
  const isCurrent = mode === told.mode;
  const name = el("th", { scope: "row", "aria-current": isCurrent ? "true" : null }, mode, isCurrent ? el("span", { class: "muted" }, " now") : null);
  const row = el("tr", {}, name, el("td", { class: "muted" }, who), ...cells(figures));
  const estimate = figures?.estimate;
  return estimate ? [row, estimateRow(told.policy, estimate)] : [row];
}

function cells(figures) {
  if (!figures) return Array.from({ length: 6 }, () => number("–"));
  return [
    number(figures.runs.toLocaleString("en")),
    number(orDash(figures.attained_share, percent)),
    number(orDash(figures.e2e_p50_s, seconds)),
    number(orDash(figures.e2e_p95_s, seconds)),
    number(figures.migrations.toLocaleString("en")),
    number(figures.splits.toLocaleString("en")),
  ];
}

/** What our policy would have given is a prediction: it stands beside the same prediction of what really was. */
function estimateRow(policy, estimate) {
  const { check } = estimate;
  const words = `${policy} would have: an estimate. The same estimate of what was: ${orDash(check.predicted_attained_share, percent)}, measured ${orDash(check.measured_attained_share, percent)}; ${estimate.elsewhere.toLocaleString("en")} of ${plural(estimate.calls, "call")} elsewhere`;
  return el("tr", {}, el("th", { scope: "row", class: "muted" }, "estimate"), el("td", { class: "muted" }, words),
    number(estimate.runs.toLocaleString("en")), number(orDash(estimate.attained_share, percent)),
    number(orDash(estimate.e2e_p50_s, seconds)), number(orDash(estimate.e2e_p95_s, seconds)), number("–"), number("–"));
}

const number = (text) => el("td", { class: "number" }, text);
