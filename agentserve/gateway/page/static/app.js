// What does the page consist of, and how does what the gateway tells get to each part of it?

import { count, takeInstances } from "./cluster.js";
import { byId, el, say, setText } from "./dom.js";
import { clock, percent, plural } from "./format.js";
import { drawGoodput, recent, takeMinutes } from "./goodput.js";
import { followModes } from "./modes.js";
import { loadPolicy } from "./policy.js";
import { closeRun, openRun, refresh, shownRun, tickRun } from "./run.js";
import { drawRuns, isRunId, place, runHref, takeRuns } from "./runs.js";
import { Stream } from "./stream.js";
import { setUpTheme } from "./theme.js";

const ROWS = 25;
const RECENT_MINUTES = 15;
const STATES = { connecting: "connecting", live: "live", lost: "no answer, trying again", paused: "paused" };
const view = { first: 0, show: "all", text: "" };
let ahead_s = 0; // how far the gateway's clock is ahead of this one
let totals = { live: 0, late: 0, calls: 0 };
let pausedAt_s = null;

const now = () => pausedAt_s ?? Date.now() / 1000 + ahead_s;

function query() {
  const asked = new URLSearchParams({ first: view.first, rows: ROWS, show: view.show, q: view.text });
  if (isRunId(shownRun() ?? "")) asked.set("run", shownRun());
  return asked;
}

const stream = new Stream(query, onNews, onState);

function onNews(news, isFirst) {
  ahead_s = news.now_s - Date.now() / 1000;
  if (news.instances) takeInstances(news.instances, isFirst);
  if (news.minutes || isFirst) takeMinutes(news.minutes ?? [], isFirst);
  if (news.totals) ({ totals } = news);
  if ("problem" in news) tellProblem(news.problem);
  takeRuns(news, isFirst);
  if (news.followed && news.followed.run_id === shownRun()) refresh(now);
  draw();
}

function draw() {
  if (document.hidden) return;
  if (shownRun()) tickRun(now());
  else {
    drawTiles();
    drawGoodput(now());
    drawRuns(now(), view.text !== "" || view.show !== "all");
  }
}

function drawTiles() {
  const ended = recent(RECENT_MINUTES, now());
  const judged = ended.inTime + ended.missed;
  const { live, total } = count();
  const tiles = [
    ["Live runs", totals.live.toLocaleString("en"), totals.late ? `${totals.late} late or expected late` : "none expected late", totals.late ? "late" : ""],
    ["In time", judged ? percent(ended.inTime / judged) : "–", judged ? `of ${plural(judged, "run")} in ${RECENT_MINUTES} min` : `no run with an SLO ended in ${RECENT_MINUTES} min`, ""],
    ["Goodput", (ended.inTime / RECENT_MINUTES).toFixed(1), `runs in time per minute, over ${RECENT_MINUTES} min`, ""],
    ["Calls in flight", totals.calls.toLocaleString("en"), "through this gateway", ""],
    ["Instances", `${live} / ${total}`, live === total ? "all live" : `${total - live} lost`, live === total ? "" : "late"],
  ];
  const list = byId("tiles");
  if (!list.children.length) {
    list.append(...tiles.map(([name]) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", { class: "figure" }), el("dd", { class: "note" }))));
  }
  tiles.forEach(([, figure, note, tone], i) => {
    const [, big, small] = list.children[i].children;
    setText(big, figure);
    setText(small, note);
    small.dataset.tone = tone;
  });
}

function tellProblem(problem) {
  const bar = byId("problem");
  bar.hidden = problem === null;
  setText(bar, problem ?? "");
}

function onState(state) {
  const mark = byId("connection");
  if (mark.dataset.state === state) return;
  if (state === "lost") say("The connection to the gateway is lost; trying again.");
  if (state === "live" && mark.dataset.state !== "paused") say("Connected; the page is live.");
  mark.dataset.state = state;
  setText(byId("connection-text"), state === "paused" ? `paused at ${clock(now())}` : STATES[state]);
}

async function route() {
  const match = /^#\/run\/(.+)$/.exec(location.hash);
  if (location.hash && !match && location.hash !== "#/") return; // a place on this page
  byId("overview").hidden = Boolean(match);
  byId("run").hidden = !match;
  const before = shownRun();
  if (match) {
    const name = decodeURIComponent(match[1]);
    document.title = `${name} · agentserve`;
    window.scrollTo(0, 0);
    const opened = openRun(name, now);
    stream.open();
    await opened;
  } else {
    closeRun();
    document.title = "agentserve";
    if (before) {
      stream.open();
      byId("overview-title").focus({ preventScroll: true });
      requestAnimationFrame(draw);
    }
  }
}

function setUpFinder() {
  let timer = 0;
  const ask = () => {
    clearTimeout(timer);
    view.text = byId("find").value.trim();
    view.show = byId("show").value;
    view.first = 0;
    stream.open();
  };
  byId("find").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 300); });
  byId("show").addEventListener("change", ask);
  byId("finder").addEventListener("submit", async (event) => {
    event.preventDefault();
    ask();
    await lookUp(view.text);
  });
  byId("newer").addEventListener("click", () => turn(-ROWS));
  byId("older").addEventListener("click", () => turn(ROWS));
}

/** Open the run of exactly this id, also one that is no longer listed. */
async function lookUp(text) {
  if (!text) return;
  const answer = await fetch(`v1/runs/${encodeURIComponent(text)}`).catch(() => null);
  if (answer?.ok) location.hash = runHref(text);
  else say(answer?.status === 404 || answer?.status === 400 ? `There is no run of the id ${text}.` : "The run could not be looked up.");
}

function turn(rows) {
  view.first = Math.max(0, view.first + rows);
  stream.open();
  say(`Showing runs from ${Math.min(view.first + 1, place().matching)}.`);
}

function setUpPause() {
  const button = byId("pause");
  button.addEventListener("click", () => {
    const isPaused = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(isPaused));
    pausedAt_s = isPaused ? now() : null;
    stream.pause(isPaused);
  });
}

byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("main").focus(); });
window.addEventListener("hashchange", route);
window.addEventListener("resize", () => requestAnimationFrame(draw));
setUpTheme();
setUpFinder();
setUpPause();
loadPolicy().catch(() => setText(byId("policy-note"), "could not be read"));
followModes(() => !byId("overview").hidden && pausedAt_s === null);
setInterval(() => { if (pausedAt_s === null) draw(); }, 1000);
await route();
if (!shownRun()) stream.open();
