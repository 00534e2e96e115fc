// keyhaul's page: a network drawn once and when it changes, one snapshot a second, nothing that is secret.

import { NetworkMap, nameOf } from "./map.js";
import { bits, element, facts, fill, showAudit, showChart, showFaults, showTrace } from "./panels.js";
import { linkStates, loads, nodeStates, span, summary } from "./states.js";

const at = (id) => document.getElementById(id);
const LINGER = 2500; // milliseconds that a link over which something went is shown so
const view = { network: null, snapshot: null, loads: new Map(), chosen: null, route: [], away: new Set(), from: null };
const map = new NetworkMap(at("map"), chooseNode, chooseLink);

async function ask(path, change, method = "PUT") {
  const options = change ? { method, body: JSON.stringify(change), headers: { "Content-Type": "application/json" } } : {};
  const answer = await fetch(`api/${path}`, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(`${body.message}${body.next ? ": " + body.next : ""}`);
  return body;
}

// ---------------------------------------------------------------- what is new

function take(snapshot) {
  const now = performance.now();
  for (const [name, load] of loads(view.snapshot, snapshot)) view.loads.set(name, { ...load, at: now });
  for (const [name, load] of view.loads) if (now - load.at > LINGER) view.loads.delete(name);
  view.snapshot = snapshot;
  later();
}

// What was chosen, taken away or asked for stays so as long as it is there.
function takeNetwork(network) {
  view.network = network;
  const names = network.nodes.map((node) => node.name);
  const links = new Map(network.links.map((link) => [nameOf(link.a, link.b), link]));
  for (const name of view.away) if (!links.has(name)) view.away.delete(name);
  if (view.route.some((name, at) => !names.includes(name) || (at && !links.has(nameOf(view.route[at - 1], name))))) view.route = [];
  const { chosen } = view;
  if (chosen) view.chosen = (chosen.name ? network.nodes.find((node) => node.name === chosen.name) : links.get(nameOf(chosen.a, chosen.b))) || null;
  if (!names.includes(view.from)) view.from = null;
  for (const [id, usual] of [["route-from", names[0]], ["route-to", names.at(-1)], ["send-from", names[0]], ["send-to", names.at(-1)]]) {
    const before = at(id).value;
    at(id).replaceChildren(...names.map((name) => element("option", name)));
    at(id).value = names.includes(before) ? before : usual;
  }
  if (chosen && !view.chosen) {
    at("detail-title").textContent = "Nothing chosen";
    at("detail").replaceChildren(element("p", "What was chosen is no longer in the network."));
    delete at("detail").dataset.said;
  }
  map.draw(network);
  later();
}

// One drawing a frame, however much came; none while nobody looks.
let drawing = false;
function later() {
  if (drawing || document.hidden) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; refresh(); });
}

function refresh() {
  if (!view.network || !view.snapshot) return;
  const { level, verdict, rest } = summary(view.snapshot);
  tell(level, verdict, rest);
  map.show({
    states: nodeStates(view.snapshot), links: linkStates(view.snapshot, view.loads), route: view.route, away: view.away,
    chosen: view.chosen && (view.chosen.name || nameOf(view.chosen.a, view.chosen.b)),
  });
  showFaults(at("faults"), view.snapshot.faults.filter((fault) => fault.severity !== "notice"));
  const notices = view.snapshot.faults.filter((fault) => fault.severity === "notice");
  at("notices-box").hidden = !notices.length;
  showFaults(at("notices"), notices);
  showNodes();
  showKeys();
  if (view.chosen) showChosen();
}

function tell(level, verdict, rest) {
  if (at("verdict").textContent !== verdict) at("verdict").textContent = verdict;
  if (at("rest").textContent !== rest) at("rest").textContent = rest;
  at("verdict").className = level;
}

function showNodes() {
  const words = nodeStates(view.snapshot);
  fill(at("nodes"), Object.values(view.snapshot.nodes).map((status) => {
    if (status.unreachable) return [status.name, "", `does not answer: ${status.unreachable}`, "", "", "", "", "", ""];
    const wait = status.activity?.wait_ms;
    const days = (status.certificates || []).map((each) => `${each.port} ${Math.floor(each.days_left)} d`).join(", ");
    return [
      status.name, status.domain, words.get(status.name)?.words || "serving", `${status.store.kind}, ${status.store.grade}`, status.entropy?.state || "",
      status.activity?.given_total ?? "", wait?.samples ? `${[wait.p50, wait.p95, wait.p99].map((each) => each.toFixed(0)).join(" / ")} ms` : "", status.unfinished, days,
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
    ["Applications wait", waits?.samples ? `${waits.p50} ms (median), ${waits.p95} ms (p95), ${waits.p99} ms (p99)` : "no request yet"],
    ["Keys on their way", status.unfinished],
  );
  return [node.name, [facts(pairs)]];
}

function linkDetail(link) {
  const name = nameOf(link.a, link.b);
  const ends = [[link.a, link.b], [link.b, link.a]].map(([here, there]) => {
    const found = view.snapshot?.nodes[here]?.links?.find((each) => each.peer === there);
    if (!found) return [[`At ${here}`, "not seen from here"]];
    const device = found.device;
    const rate = device?.bits_per_second;
    const pairs = found.level_bits === null ? [] : [[`Ready at ${here}`, bits(found.level_bits)]];
    if (device) {
      pairs.push([`Device at ${here}`, device.trouble || (device.stored_bits === null ? "does not say what it stores"
        : `stores ${bits(device.stored_bits)}${rate ? `, ${rate > 0 ? "+" : "−"}${bits(Math.round(Math.abs(rate)))}/s` : ""}`)]);
    }
    if (found.hours_left !== null && found.hours_left !== undefined) pairs.push([`Empty at ${here}`, `in ${span(found.hours_left)} at this rate`]);
    pairs.push([`Sent by ${here}`, `${found.sent_total ?? 0} messages`]);
    if (found.trouble) pairs.push([`Trouble at ${here}`, found.trouble]);
    return pairs;
  }).flat();
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

async function send(event) {
  event.preventDefault();
  at("send-said").textContent = "On its way …";
  try {
    const key = await ask("keys", { from: at("send-from").value, to: at("send-to").value }, "POST");
    at("send-said").textContent = `${key.master} and ${key.slave} have ${key.same_bits ? `the same ${key.bits} bits` : "DIFFERENT bits"} now, after ${key.milliseconds} ms. Its way:`;
    at("trace-id").value = key.key_ID;
    await trace();
  } catch (problem) {
    at("send-said").textContent = problem.message;
  }
}

async function trace(event) {
  event?.preventDefault();
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

// Knob, its name, its values, and what it does to the network.
const KNOBS = [
  ["cut", "Cut", true, false, "the fibre and the classical channel are cut; keys go on until the bits that are ready are used up"],
  ["dry", "Run dry", true, false, "the store is empty and stays so; keys go on until the bits that are ready are used up"],
  ["lag_s", "Lag 5 s", 5, 0, "keys made at the other end can be had here 5 s late; bits are ready later"],
  ["disagree", "Disagree", true, false, "it hands out wrong bits from now on; the next messages under them cannot be opened"],
];

function knobButtons(device) {
  const box = element("span");
  if (device.unreachable) { box.textContent = device.unreachable; return box; }
  for (const [name, label, on, off, effect] of KNOBS) {
    const pressed = Boolean(device.knobs[name]);
    const knob = element("button", label, { type: "button", "aria-pressed": String(pressed), "aria-label": `${label}: ${device.name}` });
    knob.addEventListener("click", async () => {
      try {
        await ask(`devices/${encodeURIComponent(device.name)}`, { [name]: pressed ? off : on });
        at("devices-said").textContent = `${device.name}: ${pressed ? "as it was" : effect}. Watch the link ${device.link.replace("--", " – ")} on the map.`;
      } catch (problem) { at("devices-said").textContent = problem.message; }
      devices();
    });
    box.append(knob, " ");
  }
  return box;
}

let shownDevices = "";
async function devices() {
  const { devices: found } = await ask("devices");
  at("devices-section").hidden = at("send-form").hidden = !found.length;
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

const darkness = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (darkness.matches ? "dark" : "light")) === "dark";
const showTheme = () => at("theme").setAttribute("aria-pressed", String(isDark()));

function theme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
}

function listen() {
  const events = new EventSource("api/events");
  events.addEventListener("network", (event) => takeNetwork(JSON.parse(event.data)));
  events.onmessage = (event) => {
    document.body.classList.remove("stale");
    take(JSON.parse(event.data));
  };
  events.onerror = () => {
    document.body.classList.add("stale");
    const ended = events.readyState === EventSource.CLOSED;
    tell("bad", "This page is cut off: what it shows is old", ended
      ? "open it again; if it came from `keyhaul dashboard`, run that again" : "it tries again on its own …");
  };
}

async function start() {
  at("route-form").addEventListener("submit", (event) => { event.preventDefault(); explain(at("route-from").value, at("route-to").value); });
  at("route-clear").addEventListener("click", () => { view.away.clear(); view.route = []; at("route-avoid").textContent = ""; at("route-text").textContent = ""; refresh(); });
  at("trace-form").addEventListener("submit", trace);
  at("send-form").addEventListener("submit", send);
  at("theme").addEventListener("click", theme);
  darkness.addEventListener("change", showTheme);
  document.addEventListener("visibilitychange", later);
  showTheme();
  takeNetwork(await ask("network"));
  listen();
  await devices();
  if (!at("devices-section").hidden) setInterval(() => devices().catch(() => {}), 2000);
  await audit();
  setInterval(() => audit().catch(() => {}), 3000);
}

start().catch((problem) => tell("bad", "This page cannot begin", problem.message));
