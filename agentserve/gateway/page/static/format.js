// How are times, shares and counts written? In the words of the terminal's waterfall.

/** A duration in three digits or so: 0.052 s, 1.25 s, 12.3 s, 340 s. */
export function seconds(value) {
  const size = Math.abs(value);
  const digits = size < 0.1 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0;
  return `${value.toFixed(digits)} s`.replace("-", "−");
}

export const signed = (value) => (value >= 0 ? "+" : "−") + seconds(Math.abs(value));

export const orDash = (value, write = String) => (value === null || value === undefined ? "–" : write(value));

export const percent = (share) => `${Math.round(share * 100)} %`;

/** A time of day, of this reader's zone. */
export function clock(at_s, withSeconds = true) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(at_s * 1000).toLocaleTimeString([], options);
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** Round steps of an axis of `span_s` seconds, at most `most` of them. */
export function roundStep(span_s, most) {
  for (let power = 1e-3; power < 1e7; power *= 10) {
    for (const base of [1, 2, 5]) if (span_s / (base * power) <= most) return base * power;
  }
  return span_s;
}

/** A step of an axis: 250 ms, 5 s, 3 min. */
export function axisLabel(at_s) {
  const size = Math.abs(at_s), sign = at_s < 0 ? "−" : "";
  if (size >= 120) return `${sign}${+(size / 60).toFixed(1)} min`;
  return `${sign}${+size.toFixed(3)} s`;
}
