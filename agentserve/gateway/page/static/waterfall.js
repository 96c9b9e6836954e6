// What did each call of a run spend its time on? The waterfall of one run, a line for each step.

import { el, svg } from "./dom.js";
import { axisLabel, roundStep, seconds } from "./format.js";

const PHASES = {
  queue: "queue at the gateway", prefill: "prefill, with the engine's queue", transfer: "KV transfer", decode: "decode",
  migration: "migrating", tool: "tool call",
};
const HEIGHT = 26, MIDDLE = HEIGHT / 2;

/** The list of steps with their bars; `width` is what the page has for it. */
export function waterfall(story, width, now_s) {
  const end_s = story.finished_s ?? Math.max(now_s, ...story.steps.map((step) => step.finished_s ?? 0));
  const took_s = Math.max(end_s - story.submitted_s, 0.05);
  const due_s = story.deadline_s;
  const shown_s = due_s !== null && due_s > end_s && due_s <= story.submitted_s + 1.6 * took_s ? due_s + 0.02 * took_s : story.submitted_s + took_s * 1.01;
  const label = Math.min(220, Math.max(110, width * 0.2)), room = Math.max(120, width - label - 84);
  const each = room / (shown_s - story.submitted_s);
  const x = (at_s) => (at_s - story.submitted_s) * each;
  const lines = story.steps.map((step) => line(step, story, x, room, end_s));
  return el("div", { class: "waterfall" },
    legend(),
    el("div", { class: "fall-line head", "aria-hidden": "true" }, el("span", { class: "fall-name" }, ""), axis(shown_s - story.submitted_s, each, room, due_s === null ? null : x(due_s)), el("span", { class: "fall-time" })),
    el("ol", { "aria-label": "Steps on a time axis" }, ...lines));
}

function line(step, story, x, room, end_s) {
  const drawing = svg("svg", { width: room, height: HEIGHT, class: "fall", "aria-hidden": "true" });
  const until_s = step.finished_s ?? end_s;
  drawing.append(bar(x(step.started_s), x(until_s), step.kind === "tool" ? MIDDLE - 3 : MIDDLE - 1, step.kind === "tool" ? 6 : 2, step.kind === "tool" ? "phase tool" : "phase step", step.node));
  for (const call of step.calls) {
    for (const [phase, from_s, to_s, instance] of call.phases) {
      const stop_s = to_s ?? end_s;
      if (stop_s - from_s < 1e-4) continue;
      drawing.append(bar(x(from_s), x(stop_s), MIDDLE - 7, 14, `phase ${phase}`, `${PHASES[phase]}${instance ? ` on ${instance}` : ""}: ${seconds(stop_s - from_s)}`));
    }
    for (const at_s of call.failures) drawing.append(svg("text", { x: x(at_s), y: MIDDLE + 5, class: "failed" }, "✗"));
  }
  for (const [kind, at_s] of [["target", step.target_deadline_s], ["latest", step.latest_deadline_s]]) {
    if (at_s === null || x(at_s) > room || x(at_s) < 0) continue;
    drawing.append(svg("line", { x1: x(at_s), x2: x(at_s), y1: 2, y2: HEIGHT - 2, class: kind },
      svg("title", {}, `${kind} deadline at ${seconds(at_s - story.submitted_s)}`)));
  }
  return el("li", { class: "fall-line" },
    el("a", { class: "fall-name", href: `#step-${step.step_id}`, "data-step": step.step_id, title: step.node }, step.node),
    drawing, el("span", { class: "fall-time" }, seconds(until_s - step.started_s)));
}

function axis(span_s, each, room, due) {
  const drawing = svg("svg", { width: room, height: 18, class: "axis" });
  const step = roundStep(span_s, Math.max(2, room / 90));
  for (let at = 0; at <= span_s; at += step) {
    const place = at * each;
    if (due !== null && Math.abs(place - due) < 34) continue;
    drawing.append(svg("text", { x: place, y: 13, class: place > room - 24 ? "tick end" : place < 10 ? "tick" : "tick mid" }, at ? axisLabel(at) : "0"));
  }
  if (due !== null && due >= 0 && due <= room) drawing.append(svg("text", { x: Math.min(due, room), y: 13, class: due > room - 24 ? "tick end due" : "tick mid due" }, "SLO"));
  return drawing;
}

function legend() {
  const entry = (kind, text) => el("li", {}, el("span", { class: `key ${kind}` }), text);
  return el("ul", { class: "legend", "aria-label": "Colours of the waterfall" },
    ...Object.entries(PHASES).map(([kind, text]) => entry(`phase-${kind}`, text)), entry("target", "target deadline"), entry("latest", "latest deadline"));
}

function bar(from, to, y, height, kind, title) {
  const left = Math.max(0, from);
  return svg("rect", { x: left.toFixed(1), y, width: Math.max(1.5, to - left).toFixed(1), height, rx: 1.5, class: kind }, svg("title", {}, title));
}
