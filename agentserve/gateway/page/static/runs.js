// Which runs are listed, and how far is each? The table of runs; its timelines are drawn by timeline.js.

import { byId, el, placeChildren, setText } from "./dom.js";
import { plural, seconds } from "./format.js";
import { drawAxis, drawTimeline, span } from "./timeline.js";
import { verdict } from "./verdicts.js";

let known = new Map(); // run id → what the stream told last
let order = [];
let first = 0, matching = 0;
const lines = new Map(); // run id → elements
const visible = new Set(); // run ids whose line is in the window
let drawnSpan = "";

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const name = entry.target.dataset.run;
    if (entry.isIntersecting) visible.add(name);
    else visible.delete(name);
  }
}, { rootMargin: "80px" });

/** Whether the gateway knows runs of such an id at all. */
export const isRunId = (text) => /^[A-Za-z0-9][A-Za-z0-9_.:@~-]{0,127}$/.test(text);

export const runHref = (name) => `#/run/${encodeURIComponent(name)}`;
export const place = () => ({ first, shown: order.length, matching });

/** Take what the stream tells of runs; the ids whose row is new. */
export function takeRuns(news, isFirst) {
  if (isFirst) known = new Map();
  for (const row of news.runs ?? []) {
    known.set(row.run_id, row);
    const line = lines.get(row.run_id);
    if (line) line.isStale = true;
  }
  if (news.order) {
    ({ order, matching, first } = news);
    const wanted = new Set(order);
    for (const name of known.keys()) if (!wanted.has(name)) known.delete(name);
    arrange(wanted);
  }
}

/** Draw what is in the window, as of `now_s`; the timelines of all lines share one span of time. */
export function drawRuns(now_s, filtered) {
  const rows = order.map((name) => known.get(name)).filter(Boolean);
  const time = byId("axis").parentElement.clientWidth - 16;
  if (time > 0 && rows.length) {
    const range = span(rows, now_s);
    drawAxis(byId("axis"), range, time, now_s);
    const key = `${range.from}|${range.to}|${time}`;
    for (const row of rows) {
      const line = lines.get(row.run_id);
      if (!line || !visible.has(row.run_id)) continue;
      if (line.isStale || row.status === "running") figures(line, row, now_s);
      if (line.isStale || key !== line.key || row.status === "running") drawTimeline(line.drawing, row, range, time, now_s);
      line.isStale = false;
      line.key = key;
    }
  }
  const empty = byId("no-runs");
  empty.hidden = rows.length > 0;
  if (!rows.length) setText(empty, filtered ? "No run matches. Press Enter to look a run id up in the store." : "No run yet. Send one, and it appears here.");
  const last = first + order.length;
  setText(byId("place"), matching ? `${first + 1}–${last} of ${matching.toLocaleString("en")}` : "");
  byId("newer").disabled = first === 0;
  byId("older").disabled = last >= matching;
}

function arrange(wanted) {
  for (const [name, line] of lines) {
    if (wanted.has(name)) continue;
    watcher.unobserve(line.row);
    visible.delete(name);
    lines.delete(name);
  }
  const rows = order.map((name) => (lines.get(name) ?? made(name)).row);
  placeChildren(byId("runs").tBodies[0], rows);
}

function made(name) {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("class", "timeline");
  drawing.setAttribute("width", 0);
  drawing.setAttribute("aria-hidden", "true");
  const sign = el("span", { class: "sign", "aria-hidden": "true" }), words = el("span"), slo = el("span", { class: "slo" });
  const line = {
    workflow: el("td", { class: "c-workflow" }), mark: el("span", { class: "verdict" }, sign, words), sign, words, slo,
    steps: el("td", { class: "number" }), moves: el("td", { class: "number" }), drawing, isStale: true, key: "",
  };
  line.row = el("tr", { "data-run": name },
    el("th", { scope: "row", class: "c-run" }, el("a", { href: runHref(name), class: "mono", title: name }, name)),
    line.workflow, el("td", { class: "c-state" }, line.mark, " ", slo), line.steps, line.moves,
    el("td", { class: "c-time" }, drawing));
  lines.set(name, line);
  visible.add(name); // until the watcher says otherwise
  watcher.observe(line.row);
  return line;
}

function figures(line, row, now_s) {
  const told = verdict(row, now_s);
  setText(line.workflow, row.workflow);
  line.workflow.title = row.workflow;
  line.mark.dataset.tone = told.tone;
  setText(line.sign, told.sign);
  setText(line.words, told.words);
  setText(line.slo, row.slo_s === null ? "" : `of ${seconds(row.slo_s)}`);
  setText(line.steps, String(row.steps));
  setText(line.moves, row.moved ? String(row.moved) : "–");
  line.row.title = row.failures ? `${plural(row.failures, "attempt")} failed` : "";
}
