// How does a run stand to its SLO? A tone for its colour, and always words too.

import { seconds, signed } from "./format.js";

const TIGHT_SHARE = 0.15; // of the SLO: with less slack than this a run is called tight

/** {tone: good | tight | late | none, sign, words} of a run's row at a time. */
export function verdict(row, now_s) {
  if (row.status !== "running") return ended(row);
  if (row.deadline_s === null) return { tone: "none", sign: "●", words: `${seconds(now_s - row.submitted_s)}, no SLO` };
  const over_s = now_s - row.deadline_s;
  if (over_s > 0) return { tone: "late", sign: "!", words: `late by ${seconds(over_s)}` };
  if (row.slack_s === null) return { tone: "none", sign: "●", words: `${seconds(-over_s)} left` };
  const tone = row.slack_s < 0 ? "late" : row.slack_s < TIGHT_SHARE * (row.slo_s ?? Infinity) ? "tight" : "good";
  return { tone, sign: tone === "good" ? "●" : "!", words: `slack ${signed(row.slack_s)}` };
}

function ended(row) {
  const took_s = row.finished_s - row.submitted_s;
  if (row.status === "failed") return { tone: "late", sign: "✗", words: `failed after ${seconds(took_s)}` };
  if (row.status === "cancelled") return { tone: row.attained === false ? "late" : "none", sign: "✗", words: `cancelled after ${seconds(took_s)}` };
  if (row.attained === null) return { tone: "none", sign: "✓", words: `took ${seconds(took_s)}` };
  const left_s = row.deadline_s - row.finished_s;
  if (row.attained) return { tone: "good", sign: "✓", words: `in time by ${seconds(left_s)}` };
  return { tone: "late", sign: "✗", words: `missed by ${seconds(-left_s)}` };
}
