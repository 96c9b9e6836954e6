// How did one run go, and why was each call served where it was? The page of one run, step by step.

import { byId, el, say, setText } from "./dom.js";
import { clock, orDash, plural, seconds, signed } from "./format.js";
import { isRunId } from "./runs.js";
import { waterfall } from "./waterfall.js";

const AGAIN_MS = 1000; // a story is read at most this often
let runId = null;
let story = null;
let problem = "";
let limit = 200;
let reading = false, wanted = false;
let told = new Map(); // step id → what its entry shows

export const shownRun = () => runId;

/** Show a run; `now` gives the gateway's time. */
export async function openRun(name, now) {
  runId = name;
  story = null;
  problem = "";
  limit = 200;
  told = new Map();
  frame(name);
  if (isRunId(name)) await refresh(now);
  else {
    problem = "This is no id of a run.";
    draw(now());
  }
  if (runId === name) byId("run-title").focus({ preventScroll: true });
}

export function closeRun() {
  runId = null;
  story = null;
}

/** Read the story again; while it is being read, once more after that. */
export async function refresh(now) {
  if (reading) {
    wanted = true;
    return;
  }
  reading = true;
  const name = runId;
  try {
    const answer = await fetch(`v1/runs/${encodeURIComponent(name)}/story?limit=${limit}`);
    const body = await answer.json();
    if (name !== runId) return;
    if (answer.ok) {
      if (story && story.status === "running" && body.status !== "running") say(`The run has ended: ${body.verdict}.`);
      [story, problem] = [body, ""];
    } else problem = body.error?.message ?? `the gateway answered ${answer.status}`;
  } catch {
    if (name === runId) problem = "the gateway does not answer";
  } finally {
    setTimeout(() => {
      reading = false;
      if (wanted && runId) {
        wanted = false;
        refresh(now);
      }
    }, AGAIN_MS);
  }
  draw(now());
}

/** What still runs grows with the time. */
export function tickRun(now_s) {
  if (story && story.status === "running") drawFall(now_s);
}

function frame(name) {
  byId("run").replaceChildren(
    el("p", { class: "back" }, el("a", { href: "#/" }, "← All runs")),
    el("h1", { id: "run-title", tabindex: "-1", class: "mono" }, name),
    el("p", { id: "run-verdict", class: "verdict large" }, "Reading the run …"),
    el("dl", { id: "run-facts", class: "facts wide" }),
    el("section", { class: "card", "aria-labelledby": "fall-title" }, el("div", { class: "head" }, el("h2", { id: "fall-title" }, "Waterfall")), el("div", { id: "fall" })),
    el("section", { class: "card", "aria-labelledby": "steps-title" },
      el("div", { class: "head" }, el("h2", { id: "steps-title" }, "Step by step"), el("p", { class: "muted", id: "steps-note" })),
      el("ol", { id: "steps", class: "steps" }), el("button", { id: "more", type: "button", class: "button", hidden: true }, "Show more steps")));
  byId("more").addEventListener("click", () => {
    limit = Math.min(2000, limit * 4);
    refresh(() => Date.now() / 1000);
  });
  byId("fall").addEventListener("click", (event) => {
    const link = event.target.closest("a[data-step]");
    if (!link) return;
    event.preventDefault();
    const entry = told.get(link.dataset.step)?.entry;
    entry?.scrollIntoView({ block: "start" });
    entry?.querySelector("h3").focus({ preventScroll: true });
  });
}

function draw(now_s) {
  const mark = byId("run-verdict");
  if (problem) {
    mark.dataset.tone = "late";
    setText(mark, problem);
  }
  if (!story) return;
  if (!problem) {
    mark.dataset.tone = { good: "good", bad: "late" }[story.tone] ?? "none";
    setText(mark, story.verdict);
  }
  const facts = [
    ["Workflow", story.workflow ?? "unknown"], ["Status", story.status], ["SLO", orDash(story.slo_s, seconds)],
    ["Submitted", clock(story.submitted_s)], ["Due", orDash(story.deadline_s, clock)], ["Ended", orDash(story.finished_s, clock)],
  ];
  if (story.error) facts.push(["Error", story.error]);
  byId("run-facts").replaceChildren(...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  drawFall(now_s);
  drawSteps();
}

function drawFall(now_s) {
  const place = byId("fall");
  const width = place.clientWidth;
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.step : null;
  if (!story.steps.length) place.replaceChildren(el("p", { class: "empty" }, "No step has begun."));
  else place.replaceChildren(waterfall(story, width, now_s));
  if (focused !== null) [...place.querySelectorAll("a[data-step]")].find((link) => link.dataset.step === focused)?.focus({ preventScroll: true });
}

function drawSteps() {
  const entries = story.steps.map((step) => {
    const key = JSON.stringify(step), known = told.get(step.step_id);
    if (known && known.key === key) return known.entry;
    const open = known ? [...known.entry.querySelectorAll("details")].map((one) => one.open) : [];
    const entry = entryOf(step);
    entry.querySelectorAll("details").forEach((one, i) => { one.open = open[i] ?? false; });
    told.set(step.step_id, { key, entry });
    return entry;
  });
  const list = byId("steps");
  if (entries.length !== list.children.length || entries.some((entry, i) => entry !== list.children[i])) list.replaceChildren(...entries);
  setText(byId("steps-note"), story.steps.length < story.steps_total ? `the first ${story.steps.length} of ${story.steps_total}` : plural(story.steps_total, "step"));
  byId("more").hidden = story.steps.length >= story.steps_total || limit >= 2000;
}

function entryOf(step) {
  const from_s = step.started_s - story.submitted_s;
  const took = step.finished_s === null ? "still going" : seconds(step.finished_s - step.started_s);
  const outcome = step.outcome && step.outcome !== "ok" ? ` · ${step.outcome}` : "";
  return el("li", { class: `step-entry${step.outcome === "failed" ? " failed" : ""}` },
    el("h3", { tabindex: "-1" }, el("span", { class: "node" }, step.node), el("span", { class: `chip ${step.kind}` }, step.kind === "tool" ? "tool" : "LLM")),
    el("p", { class: "muted when" }, `began at ${seconds(from_s)} · ${took}${outcome}`),
    ...step.sentences.map((sentence) => el("p", {}, sentence)),
    step.error ? el("p", { class: "error" }, `error: ${step.error}`) : null,
    ...step.calls.map((call) => callOf(call, step.calls.length > 1)));
}

function callOf(call, isOneOfMany) {
  return el("div", { class: "call" },
    isOneOfMany ? el("h4", { class: "mono" }, call.request_id) : null,
    ...call.sentences.flatMap(paragraphs),
    call.candidates.length ? candidates(call) : null);
}

/** A sentence; why others lost stands on lines of its own. */
function paragraphs(sentence) {
  const [first, ...losers] = sentence.split(" · not ");
  const kind = sentence.startsWith("⇢") ? "moved" : sentence.startsWith("✗") || sentence.startsWith("error") ? "error" : null;
  return [el("p", { class: kind }, first), ...losers.map((why) => el("p", { class: "not" }, `not ${why}`))];
}

function candidates(call) {
  const total = call.candidates_total ?? call.candidates.length;
  const heads = ["Placement", "Queue", "Prefill", "KV transfer", "Decode", "Ends after", "Slack", "Verdict"];
  const line = (one) => {
    const where = one.prefill === one.decode ? one.decode : `${one.prefill} ⇒ ${one.decode}`;
    const times = [one.queue_s, one.prefill_s, one.transfer_s, one.decode_s, one.ends_after_s].map((value) => el("td", { class: "number" }, orDash(value, seconds)));
    return el("tr", {}, el("th", { scope: "row", class: "mono" }, where), ...times, el("td", { class: "number" }, orDash(one.slack_s, signed)), el("td", {}, one.verdict ?? ""));
  };
  const shown = call.candidates.length < total ? `the best ${call.candidates.length} of ${total} placements weighed` : `${plural(total, "placement")} weighed`;
  return el("details", {}, el("summary", {}, `As predicted: ${shown}`),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Placements weighed for ${call.request_id}` },
      el("table", { class: "small" },
        el("thead", {}, el("tr", {}, ...heads.map((name, i) => el("th", { scope: "col", class: i > 0 && i < 7 ? "number" : null }, name)))),
        el("tbody", {}, ...call.candidates.map(line)))));
}
