// When did a run's steps run, and when is it due? One line of the list of runs, on a time axis that all lines share.

import { svg } from "./dom.js";
import { axisLabel, roundStep, seconds } from "./format.js";
import { verdict } from "./verdicts.js";

const HEIGHT = 26, MIDDLE = HEIGHT / 2;
const LONGEST = 6; // the axis covers so many times the longest run, and no more
const AHEAD = 0.6; // and looks ahead of now by at most this share of what is behind

/** The time that the lines of these runs share. */
export function span(rows, now_s) {
  const isLive = rows.some((row) => row.status === "running");
  const ends = rows.map((row) => row.finished_s ?? now_s);
  const anchor = isLive ? now_s : Math.max(...ends);
  const longest = Math.max(1, ...rows.map((row, i) => ends[i] - row.submitted_s));
  const from = Math.max(Math.min(...rows.map((row) => row.submitted_s)), anchor - LONGEST * longest);
  const dues = rows.filter((row) => row.status === "running" && row.deadline_s !== null).map((row) => row.deadline_s);
  const behind = Math.max(anchor - from, 0.5);
  const to = Math.min(Math.max(anchor + 0.04 * behind, ...dues), anchor + AHEAD * behind);
  return { from, to, anchor, isLive };
}

/** Round times before and after now (or the last end). */
export function drawAxis(axis, range, width, now_s) {
  const x = scale(range, width);
  const step = roundStep(range.to - range.from, Math.max(2, width / 90));
  const parts = [];
  const zero = range.isLive ? now_s : range.anchor;
  for (let at = Math.ceil((range.from - zero) / step) * step; zero + at <= range.to; at += step) {
    const isZero = Math.abs(at) < step / 2;
    const place = x(zero + at), text = isZero ? (range.isLive ? "now" : "last end") : `${at > 0 ? "+" : ""}${axisLabel(at)}`;
    const kind = place < 30 ? "tick" : place > width - 30 ? "tick end" : "tick mid";
    parts.push(svg("text", { x: place, y: 13, class: isZero ? `${kind} zero` : kind }, text));
  }
  axis.setAttribute("width", width);
  axis.setAttribute("height", 18);
  axis.replaceChildren(...parts);
}

/** The line of one run. */
export function drawTimeline(drawing, row, range, width, now_s) {
  const x = scale(range, width), { tone } = verdict(row, now_s);
  const end_s = row.finished_s ?? now_s;
  const parts = [];
  if (range.isLive) parts.push(svg("line", { x1: x(now_s), x2: x(now_s), y1: 0, y2: HEIGHT, class: "now" }));
  if (end_s >= range.from) {
    parts.push(rect(x(row.submitted_s), x(end_s), MIDDLE - 2, 4, `track ${tone}`));
    if (row.status === "running" && row.deadline_s !== null && row.deadline_s > now_s) {
      parts.push(svg("line", { x1: x(now_s), x2: x(row.deadline_s), y1: MIDDLE, y2: MIDDLE, class: `ahead ${tone}` }));
    }
    for (const bar of row.bars) parts.push(...step(bar, row, x, range, now_s, tone));
    for (const [at_s, source, target, cause] of row.moves) {
      if (at_s < range.from) continue;
      const place = x(at_s);
      parts.push(svg("path", { d: `M${place} ${MIDDLE - 6}l6 6-6 6-6-6z`, class: "move" },
        svg("title", {}, `moved ${source ?? "?"} → ${target ?? "?"} (${cause ?? "?"})`)));
    }
  } else parts.push(svg("text", { x: 2, y: MIDDLE + 4, class: "tick" }, `◂ ended ${axisLabel(range.anchor - end_s)} before`));
  if (row.deadline_s !== null && row.deadline_s >= range.from && row.deadline_s <= range.to) {
    parts.push(svg("line", { x1: x(row.deadline_s), x2: x(row.deadline_s), y1: 3, y2: HEIGHT - 3, class: "deadline" }));
  }
  drawing.setAttribute("width", width);
  drawing.setAttribute("height", HEIGHT);
  drawing.replaceChildren(...parts);
}

function step([node, kind, started_s, finished_s, outcome, instance, phase], row, x, range, now_s, tone) {
  const end_s = finished_s ?? row.finished_s ?? now_s;
  if (end_s < range.from) return [];
  const isTool = kind === "tool";
  const state = outcome && outcome !== "ok" ? ` ${outcome}` : phase === "held" || phase === "queue" ? " waits" : "";
  const bar = rect(x(started_s), x(end_s), isTool ? MIDDLE - 3 : MIDDLE - 6, isTool ? 6 : 12, `step ${isTool ? "tool" : tone}${state}`);
  const where = instance ? ` on ${instance}` : "";
  bar.append(svg("title", {}, `${node}${where}: ${seconds(end_s - started_s)}${outcome ? `, ${outcome}` : phase ? `, ${phase}` : ""}`));
  return [bar];
}

function rect(from, to, y, height, kind) {
  const left = Math.max(0, from);
  return svg("rect", { x: left.toFixed(1), y, width: Math.max(1.5, to - left - 0.5).toFixed(1), height, rx: 2, class: kind });
}

function scale({ from, to }, width) {
  const each = width / (to - from);
  return (at_s) => (at_s - from) * each;
}
