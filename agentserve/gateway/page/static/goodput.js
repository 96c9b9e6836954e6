// How many runs ended in time, minute by minute? A chart of the last hour, and the same as a table.

import { byId, el, svg } from "./dom.js";
import { clock, percent, plural } from "./format.js";

const MINUTES = 60;
const HEIGHT = 172, LEFT = 30, RIGHT = 4, TOP = 10, BOTTOM = 22;
let minutes = new Map();
let drawn = "";

export function takeMinutes(changed, isFirst) {
  if (isFirst) minutes = new Map();
  for (const [begin, inTime, missed, noSlo] of changed) minutes.set(begin, { begin, inTime, missed, noSlo });
}

/** Of the last so many minutes, the present one included: runs in time, missed, without SLO. */
export function recent(count, now_s) {
  const since = Math.floor(now_s / 60) * 60 - (count - 1) * 60;
  const sum = { inTime: 0, missed: 0, noSlo: 0 };
  for (const one of minutes.values()) {
    if (one.begin < since) continue;
    for (const key of Object.keys(sum)) sum[key] += one[key];
  }
  return sum;
}

export function drawGoodput(now_s) {
  const last = Math.floor(now_s / 60) * 60;
  const shown = Array.from({ length: MINUTES }, (_, i) => last - (MINUTES - 1 - i) * 60)
    .map((begin) => minutes.get(begin) ?? { begin, inTime: 0, missed: 0, noSlo: 0 });
  const place = byId("goodput");
  const width = place.clientWidth;
  const key = JSON.stringify([width, shown]);
  if (key === drawn || !width) return;
  drawn = key;
  const isOpen = place.querySelector("details")?.open ?? false;
  place.replaceChildren(legend(), chart(shown, width), table(shown, isOpen));
}

function legend() {
  const entry = (kind, text) => el("li", {}, el("span", { class: `key ${kind}` }), text);
  return el("ul", { class: "legend", "aria-label": "Colours of the chart" },
    entry("good", "in time"), entry("late", "missed"), entry("none", "no SLO"));
}

function chart(shown, width) {
  const most = Math.max(4, ...shown.map((one) => one.inTime + one.missed + one.noSlo));
  const step = niceStep(most), top = Math.ceil(most / step) * step;
  const wide = (width - LEFT - RIGHT) / MINUTES;
  const high = (count) => (count / top) * (HEIGHT - TOP - BOTTOM);
  const sums = shown.reduce((sum, one) => ({ inTime: sum.inTime + one.inTime, all: sum.all + one.inTime + one.missed }), { inTime: 0, all: 0 });
  const label = sums.all
    ? `Runs per minute over the last hour: ${sums.inTime} of ${sums.all} runs with an SLO ended in time, ${percent(sums.inTime / sums.all)}.`
    : "Runs per minute over the last hour: no run with an SLO has ended.";
  const drawing = svg("svg", { width, height: HEIGHT, class: "chart", role: "img", "aria-label": label });
  for (let count = 0; count <= top; count += step) {
    const y = HEIGHT - BOTTOM - high(count);
    drawing.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y, class: count ? "grid" : "base" }),
      svg("text", { x: LEFT - 6, y: y + 4, class: "tick end" }, String(count)));
  }
  shown.forEach((one, i) => {
    const x = LEFT + i * wide;
    if (i % 15 === 14) drawing.append(svg("text", { x: x + wide / 2, y: HEIGHT - 6, class: i === MINUTES - 1 ? "tick end" : "tick mid" }, clock(one.begin, false)));
    let y = HEIGHT - BOTTOM;
    const bar = svg("g", {}, svg("title", {}, inWords(one)));
    for (const [kind, count] of [["good", one.inTime], ["late", one.missed], ["none", one.noSlo]]) {
      if (!count) continue;
      y -= high(count);
      bar.append(svg("rect", { x: x + 0.75, y, width: wide - 1.5, height: Math.max(1, high(count) - 1), class: `tone ${kind}`, rx: 1.5 }));
    }
    if (bar.childNodes.length > 1) drawing.append(bar);
  });
  return drawing;
}

function inWords(one) {
  const judged = one.inTime + one.missed;
  const share = judged ? ` (${percent(one.inTime / judged)})` : "";
  return `${clock(one.begin, false)}: ${one.inTime} in time${share}, ${one.missed} missed` + (one.noSlo ? `, ${one.noSlo} without an SLO` : "");
}

function table(shown, isOpen) {
  const busy = shown.filter((one) => one.inTime + one.missed + one.noSlo).reverse();
  const line = (one) => el("tr", {}, el("th", { scope: "row" }, clock(one.begin, false)),
    ...[one.inTime, one.missed, one.noSlo].map((count) => el("td", { class: "number" }, String(count))),
    el("td", { class: "number" }, one.inTime + one.missed ? percent(one.inTime / (one.inTime + one.missed)) : "–"));
  return el("details", { open: isOpen }, el("summary", {}, `As a table: ${plural(busy.length, "minute")} with ended runs`),
    el("table", { class: "small" },
      el("thead", {}, el("tr", {}, ...["Minute", "In time", "Missed", "No SLO", "Attainment"].map((name, i) => el("th", { scope: "col", class: i ? "number" : null }, name)))),
      el("tbody", {}, ...busy.map(line))));
}

function niceStep(most) {
  for (let power = 1; ; power *= 10) for (const base of [1, 2, 5]) if (most / (base * power) <= 4) return base * power;
}
