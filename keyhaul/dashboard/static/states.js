// What a snapshot says of nodes and links, in the few words that fit on a map. Nothing here touches the page.

import { nameOf } from "./map.js";
import { bits } from "./panels.js";

export function nodeStates({ nodes, faults }) {
  const states = new Map();
  for (const status of Object.values(nodes)) states.set(status.name, { level: "good", words: "serving" });
  for (const fault of faults) {
    const state = states.get(fault.where[0]);
    if (fault.where.length !== 1 || fault.severity === "notice" || !state || state.level === "bad") continue;
    const error = fault.severity === "error";
    state.level = error ? "bad" : "warn";
    state.words = `${error ? "needs you" : "serving, with a warning"}: ${fault.short}`;
  }
  return states;
}

export const span = (hours) => (hours < 1 ? `${Math.max(1, Math.round(hours * 60))} min` : `${hours.toFixed(1)} h`);

// Messages a second over each link and the end most of them leave from, from two snapshots.
export function loads(before, now) {
  const found = new Map();
  if (!before || now.time <= before.time) return found;
  for (const status of Object.values(now.nodes)) {
    for (const link of status.links || []) {
      const old = before.nodes[status.name]?.links?.find((each) => each.peer === link.peer);
      const sent = old === undefined ? 0 : Math.max(0, (link.sent_total || 0) - (old.sent_total || 0));
      if (!sent) continue;
      const load = found.get(nameOf(status.name, link.peer)) || { rate: 0, most: 0, from: "" };
      load.rate += sent / (now.time - before.time);
      if (sent > load.most) { load.most = sent; load.from = status.name; }
      found.set(nameOf(status.name, link.peer), load);
    }
  }
  return found;
}

// The poorer end counts. `load`: what `loads` found lately.
export function linkStates({ nodes, faults }, load) {
  const links = new Map();
  for (const status of Object.values(nodes)) {
    for (const link of status.links || []) {
      const name = nameOf(status.name, link.peer);
      const state = links.get(name) || { words: "", more: "" };
      if (link.level_bits !== null && (state.level === undefined || link.level_bits < state.level)) {
        state.level = link.level_bits;
        state.words = `${bits(link.level_bits)} ready`;
      }
      const stored = link.device?.stored_bits;
      if (stored !== null && stored !== undefined && (state.stored === undefined || stored < state.stored)) {
        state.stored = stored;
        state.more = `${bits(stored)} in device`;
      }
      if (link.hours_left !== null && link.hours_left !== undefined && !(link.hours_left >= state.left)) {
        state.left = link.hours_left;
        state.more = `empty in ${span(link.hours_left)}`;
      }
      links.set(name, state);
    }
  }
  for (const [name, { rate, from }] of load) {
    const state = links.get(name) || { words: "", more: "" };
    links.set(name, { ...state, from, load: `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} messages/s` });
  }
  for (const fault of [...faults].reverse()) {
    if (fault.where.length !== 2 || fault.severity === "notice") continue;
    const state = links.get(nameOf(...fault.where)) || { words: "", more: "" };
    state.bad = fault.severity === "error";
    state.warn = !state.bad;
    state.words = fault.short;
    if (state.bad) state.more = "";
    links.set(nameOf(...fault.where), state);
  }
  const gone = Object.values(nodes).filter((status) => status.unreachable).map((status) => status.name);
  for (const [name, state] of links) {
    if (name.split("|").some((end) => gone.includes(end))) Object.assign(state, { bad: true, words: "no answer", more: "" });
    state.spoken = [state.words, state.more, state.load].filter(Boolean).join(", ");
    if (state.load) state.more = state.load;
  }
  return links;
}

export function summary({ nodes, faults }) {
  const statuses = Object.values(nodes);
  const up = statuses.filter((status) => !status.unreachable).length;
  const errors = faults.filter((fault) => fault.severity === "error");
  const warnings = faults.filter((fault) => fault.severity === "warning");
  const first = errors[0] || warnings[0];
  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  const given = statuses.reduce((sum, status) => sum + (status.activity?.given_total || 0), 0);
  const level = errors.length ? "bad" : warnings.length ? "warn" : "good";
  const verdict = !first ? "All is well"
    : [errors.length && count(errors.length, "fault"), warnings.length && count(warnings.length, "warning")].filter(Boolean).join(", ");
  const where = first ? ` (${first.where.join(" – ")}: ${first.short})` : "";
  const seen = statuses.length === 1 ? `seen from ${statuses[0].name}` : `${up} of ${statuses.length} nodes answer`;
  return { level, verdict: verdict + where, rest: `${seen}, ${count(given, "key")} given since the start` };
}
