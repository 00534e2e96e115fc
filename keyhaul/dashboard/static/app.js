// keyhaul's page: one network drawn once, one snapshot a second, nothing that is secret.

import { NetworkMap, nameOf } from "./map.js";
import { bits, element, facts, fill, showAudit, showChart, showFaults, showTrace } from "./panels.js";

const at = (id) => document.getElementById(id);
const view = { network: null, snapshot: null, chosen: null, route: [], away: new Set(), from: null };
const map = new NetworkMap(at("map"), chooseNode, chooseLink);

async function ask(path, change) {
  const options = change ? { method: "PUT", body: JSON.stringify(change), headers: { "Content-Type": "application/json" } } : {};
  const answer = await fetch(`api/${path}`, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(`${body.message}${body.next ? ": " + body.next : ""}`);
  return body;
}

// ---------------------------------------------------------------- what the snapshot says

function nodeStates() {
  const states = new Map();
  const { nodes, faults } = view.snapshot;
  for (const status of Object.values(nodes)) {
    states.set(status.name, status.unreachable ? { level: "bad", words: "does not answer" } : { level: "good", words: "serving" });
  }
  for (const fault of faults) {
    if (fault.where.length !== 1 || fault.severity === "notice" || !states.has(fault.where[0])) continue;
    const state = states.get(fault.where[0]);
    if (state.level === "bad") continue;
    if (fault.severity === "error") { state.level = "bad"; state.words = "needs you"; }
    else { state.level = "warn"; state.words = "serving, with a warning"; }
  }
  return states;
}

function linkStates() {
  const links = new Map();
  for (const status of Object.values(view.snapshot.nodes)) {
    for (const link of status.links || []) {
      const name = nameOf(status.name, link.peer);
      const state = links.get(name) || { words: "" };
      const level = link.level_bits;
      if (level !== null && (state.level === undefined || level < state.level)) {
        state.level = level;
        state.words = link.hours_left === null || link.hours_left === undefined
          ? bits(level) : `empty in ${link.hours_left < 1 ? Math.round(link.hours_left * 60) + " min" : link.hours_left.toFixed(1) + " h"}`;
      }
      state.busy = state.busy || (status.outbox || {})[link.peer] > 0;
      links.set(name, state);
    }
  }
  for (const fault of view.snapshot.faults) {
    if (fault.where.length === 2 && fault.severity !== "notice") {
      const state = links.get(nameOf(...fault.where)) || { words: "" };
      state.bad = fault.severity === "error";
      if (state.bad) state.words = fault.what.includes("does not answer") ? "no answer" : "no key bits";
      links.set(nameOf(...fault.where), state);
    }
  }
  return links;
}

function summary() {
  const statuses = Object.values(view.snapshot.nodes);
  const up = statuses.filter((status) => !status.unreachable).length;
  const errors = view.snapshot.faults.filter((fault) => fault.severity === "error").length;
  const given = statuses.reduce((sum, status) => sum + (status.activity?.given_total || 0), 0);
  const of = statuses.length === 1 ? `seen from ${statuses[0].name}` : `${up} of ${statuses.length} nodes answer`;
  return `${of}; ${errors === 0 ? "no faults" : errors === 1 ? "1 fault" : `${errors} faults`}; ${given} keys given since the start`;
}

function refresh() {
  if (!view.network || !view.snapshot) return;
  const said = summary();
  if (at("summary").textContent !== said) at("summary").textContent = said;
  map.show({ states: nodeStates(), links: linkStates(), route: view.route, away: view.away, chosen: view.chosen?.name });
  showFaults(at("faults"), view.snapshot.faults);
  showNodes();
  showKeys();
  if (view.chosen) showChosen();
}

function showNodes() {
  fill(at("nodes"), Object.values(view.snapshot.nodes).map((status) => {
    if (status.unreachable) return [status.name, "", `does not answer: ${status.unreachable}`, "", "", "", "", "", ""];
    const wait = status.activity?.wait_ms?.p50;
    const days = (status.certificates || []).map((each) => `${each.port} ${Math.floor(each.days_left)} d`).join(", ");
    return [
      status.name, status.domain, "serving", `${status.store.kind}, ${status.store.grade}`, status.entropy?.state || "",
      status.activity?.given_total ?? "", wait === undefined ? "" : `${wait.toFixed(1)} ms`, status.unfinished, days,
    ];
  }));
}

function showKeys() {
  const active = Object.values(view.snapshot.nodes).filter((status) => status.activity);
  const length = active[0]?.activity.given_per_second.length || 2;
  const sum = Array.from({ length }, (_, second) =>
    active.reduce((total, status) => total + (status.activity.given_per_second[second] || 0), 0));
  const shown = view.chosen?.name && view.snapshot.nodes[view.chosen.name]?.activity?.wait_ms;
  const waits = shown && shown.samples ? ["p50", "p95", "p99"].map((name) => `${shown[name].toFixed(1)} ms (${name})`) : [];
  showChart(at("chart"), at("chart-text"), sum, waits);
  const pools = active.flatMap((status) => status.pools || []).sort((a, b) => b.ready - a.ready).slice(0, 50);
  fill(at("pools"), pools.length ? pools.map((pool) => [pool.master, pool.targets.join(", "), pool.size, pool.ready])
    : [["none yet", "", "", ""]]);
}

// ---------------------------------------------------------------- choosing

function chooseNode(node) {
  if (view.from && view.from !== node.name) explain(view.from, node.name);
  view.from = node.name;
  view.chosen = node;
  showChosen();
  refresh();
}

function chooseLink(link) {
  view.chosen = link;
  view.from = null;
  showChosen();
  refresh();
}

function showChosen() {
  const { chosen } = view;
  const [title, made] = chosen.name ? nodeDetail(chosen) : linkDetail(chosen);
  at("detail-title").textContent = title;
  const said = made.map((part) => part.textContent).join("\n");
  if (at("detail").dataset.said === said) return; // a button that is pressed right now stays
  at("detail").dataset.said = said;
  at("detail").replaceChildren(...made);
}

function nodeDetail(node) {
  const status = view.snapshot?.nodes[node.name];
  const pairs = [["Domain", node.domain], ["Applications", node.saes.join(", ") || "none"]];
  if (!status) return [node.name, [facts([...pairs, ["State", "this node's own page knows only itself"]])]];
  if (status.unreachable) return [node.name, [facts([...pairs, ["State", status.unreachable]])]];
  const waits = status.activity?.wait_ms;
  pairs.push(
    ["Release", status.version], ["Up for", `${Math.floor(status.uptime_seconds / 60)} min`],
    ["Root secret", `${status.store.kind}, grade ${status.store.grade}`],
    ["Keys given", status.activity?.given_total ?? 0], ["Keys fetched", status.activity?.fetched_total ?? 0],
    ["Requests refused", status.activity?.refused_total ?? 0],
    ["Applications wait", waits?.samples ? `${waits.p50} ms (median), ${waits.p99} ms (p99)` : "no request yet"],
    ["Keys on their way", status.unfinished],
  );
  return [node.name, [facts(pairs)]];
}

function linkDetail(link) {
  const name = nameOf(link.a, link.b);
  const ends = [[link.a, link.b], [link.b, link.a]].map(([here, there]) => {
    const found = view.snapshot?.nodes[here]?.links?.find((each) => each.peer === there);
    return [`Ready at ${here}`, found ? bits(found.level_bits) : "not seen from here"];
  });
  const away = view.away.has(name);
  const toggle = element("button", away ? "Bring this link back" : "What if this link were gone?", { type: "button", "aria-pressed": String(away) });
  toggle.addEventListener("click", () => {
    if (away) view.away.delete(name); else view.away.add(name);
    explain(at("route-from").value, at("route-to").value);
    showChosen();
    refresh();
  });
  const kind = link.kind === "qkd" ? `quantum, pads ${link.mode}, ML-KEM-768 on top` : "post-quantum, ML-KEM-768";
  return [`${link.a} – ${link.b}`, [facts([["Kind", kind], ...ends]), toggle]];
}

// ---------------------------------------------------------------- routes, traces, devices

async function explain(from, to) {
  at("route-from").value = from;
  at("route-to").value = to;
  const avoid = [...view.away].map((name) => `&avoid=${encodeURIComponent(name)}`).join("");
  at("route-avoid").textContent = view.away.size ? `Without ${[...view.away].map((name) => name.replace("|", " – ")).join(", ")}:` : "";
  try {
    const route = await ask(`route?from=${encodeURIComponent(from)}&to=${encodeURIComponent(to)}${avoid}`);
    view.route = route.hops;
    at("route-text").textContent = route.explanation;
  } catch (problem) {
    view.route = [];
    at("route-text").textContent = problem.message;
  }
  refresh();
}

async function trace(event) {
  event.preventDefault();
  const keyId = at("trace-id").value.trim();
  try {
    const { rows } = await ask(`keys/${encodeURIComponent(keyId)}`);
    showTrace(at("trace"), rows, keyId);
    view.route = rows.find((row) => row.path?.length > 1)?.path || [];
    refresh();
  } catch (problem) {
    at("trace").replaceChildren(element("p", problem.message));
  }
}

const KNOBS = [["cut", "Cut", true, false], ["dry", "Run dry", true, false], ["lag_s", "Lag 5 s", 5, 0], ["disagree", "Disagree", true, false]];

function knobButtons(device) {
  const box = element("span");
  if (device.unreachable) { box.textContent = device.unreachable; return box; }
  for (const [name, label, on, off] of KNOBS) {
    const pressed = Boolean(device.knobs[name]);
    const knob = element("button", label, { type: "button", "aria-pressed": String(pressed), "aria-label": `${label}: ${device.name}` });
    knob.addEventListener("click", async () => {
      try { await ask(`devices/${encodeURIComponent(device.name)}`, { [name]: pressed ? off : on }); }
      catch (problem) { at("route-text").textContent = problem.message; }
      devices();
    });
    box.append(knob, " ");
  }
  return box;
}

let shownDevices = "";
async function devices() {
  const { devices: found } = await ask("devices");
  at("devices-section").hidden = !found.length;
  const state = JSON.stringify(found.map((device) => [device.name, device.knobs, device.unreachable, Math.round((device.bits?.stored || 0) / 1000)]));
  if (state === shownDevices) return; // buttons keep their focus
  const focus = document.activeElement?.getAttribute("aria-label");
  shownDevices = state;
  fill(at("devices"), found.map((device) => [device.name, device.node, bits(device.bits?.stored ?? 0), knobButtons(device)]));
  if (focus) at("devices").querySelector(`[aria-label="${CSS.escape(focus)}"]`)?.focus();
}

async function audit() {
  const { lines } = await ask("audit?most=50");
  at("audit-section").hidden = !lines.length;
  showAudit(at("audit"), lines);
}

// ---------------------------------------------------------------- start

function theme() {
  const dark = document.documentElement.dataset.theme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  at("theme").setAttribute("aria-pressed", String(!dark));
}

function listen() {
  const events = new EventSource("api/events");
  events.onmessage = (event) => { view.snapshot = JSON.parse(event.data); refresh(); };
  events.onerror = () => { at("summary").textContent = "This page has lost its node and tries again …"; };
}

async function start() {
  view.network = await ask("network");
  map.draw(view.network);
  for (const id of ["route-from", "route-to"]) {
    at(id).replaceChildren(...view.network.nodes.map((node) => element("option", node.name)));
  }
  at("route-to").selectedIndex = view.network.nodes.length - 1;
  at("route-form").addEventListener("submit", (event) => { event.preventDefault(); explain(at("route-from").value, at("route-to").value); });
  at("route-clear").addEventListener("click", () => { view.away.clear(); view.route = []; at("route-avoid").textContent = ""; at("route-text").textContent = ""; refresh(); });
  at("trace-form").addEventListener("submit", trace);
  at("theme").addEventListener("click", theme);
  listen();
  await devices();
  if (!at("devices-section").hidden) setInterval(() => devices().catch(() => {}), 2000);
  await audit();
  setInterval(() => audit().catch(() => {}), 3000);
}

start().catch((problem) => { at("summary").textContent = problem.message; });
