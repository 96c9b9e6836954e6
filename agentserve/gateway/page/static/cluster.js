// Which instances are there, and how busy is each? The table of instances, changed cell by cell.

import { byId, el, placeChildren, say, setText } from "./dom.js";
import { orDash, percent } from "./format.js";

const rows = new Map();
let instances = new Map();

export function takeInstances(changed, isFirst) {
  const before = instances;
  if (isFirst) instances = new Map();
  for (const one of changed) {
    const known = before.get(one.instance_id);
    if (known && known.state !== one.state) say(`Instance ${one.instance_id} is ${one.state}.`);
    if (!known && !isFirst) say(`Instance ${one.instance_id} joined.`);
    instances.set(one.instance_id, one);
    draw(one);
  }
  const names = [...instances.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const body = byId("instances").tBodies[0];
  if (isFirst || names.length !== body.rows.length) placeChildren(body, names.map((name) => rows.get(name).row));
  const { live, total } = count();
  const models = [...new Set([...instances.values()].map((one) => one.model))].sort();
  setText(byId("instances-note"), total ? `${live} of ${total} live · ${models.join(", ")}` : "none has joined yet");
}

export function count() {
  const all = [...instances.values()];
  return { live: all.filter((one) => one.state !== "lost").length, total: all.length };
}

function draw(one) {
  const cells = rows.get(one.instance_id) ?? made(one.instance_id);
  const isLost = one.state === "lost";
  cells.row.classList.toggle("lost", isLost);
  setText(cells.gpu, one.gpu);
  setText(cells.role, one.role);
  cells.state.dataset.state = one.state;
  setText(cells.stateText, one.state);
  cells.state.title = one.reason ?? "";
  setText(cells.queue, orDash(one.waiting === null ? null : one.waiting + one.held_back));
  setText(cells.batch, one.running === null ? "–" : `${one.running} / ${one.max_num_seqs}`);
  const kv = isLost ? null : one.kv_usage;
  cells.fill.style.width = kv === null ? "0" : `${Math.min(100, kv * 100).toFixed(1)}%`;
  cells.fill.classList.toggle("full", kv !== null && kv > 0.9);
  setText(cells.kv, orDash(kv, (share) => `${(share * 100).toFixed(1)} %`));
  setText(cells.hits, isLost ? "–" : orDash(one.prefix_hit_rate, percent));
  setText(cells.prefill, orDash(one.prefill_correction, (x) => x.toFixed(2)));
  setText(cells.decode, orDash(one.decode_correction, (x) => x.toFixed(2)));
}

function made(name) {
  const cell = (kind = "") => el("td", { class: kind });
  const stateText = el("span");
  const state = el("span", { class: "state" }, el("span", { class: "dot", "aria-hidden": "true" }), stateText);
  const fill = el("span", { class: "fill" }), kv = el("span", { class: "figure" });
  const cells = {
    gpu: cell(), role: cell(), state, stateText, queue: cell("number"), batch: cell("number"), fill, kv,
    hits: cell("number"), prefill: cell("number"), decode: cell("number"),
  };
  cells.row = el("tr", {},
    el("th", { scope: "row", class: "mono" }, name), cells.gpu, cells.role, el("td", {}, state), cells.queue, cells.batch,
    el("td", {}, el("span", { class: "meter" }, el("span", { class: "meter-track", "aria-hidden": "true" }, fill), kv)),
    cells.hits, cells.prefill, cells.decode);
  rows.set(name, cells);
  return cells;
}
