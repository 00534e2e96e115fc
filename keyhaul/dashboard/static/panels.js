// Panels beside the map: everything is set as text, never as markup, for names come from configurations.

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  if (text !== "") made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function bits(number) {
  if (number === null || number === undefined) return "no device";
  for (const [size, unit] of [[1e9, "Gbit"], [1e6, "Mbit"], [1e3, "kbit"]]) {
    if (number >= size) return `${(number / size).toFixed(1)} ${unit}`;
  }
  return `${number} bit`;
}

export function facts(pairs) {
  const list = element("dl");
  for (const [name, value] of pairs) list.append(element("dt", name), element("dd", String(value)));
  return list;
}

// Rows of a table; cells that say the same as before are left alone. The first cell of a row is its header.
export function fill(body, rows) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, at) => {
    const row = body.rows[at] || body.appendChild(element("tr"));
    cells.forEach((cell, column) => {
      const box = row.cells[column] || row.appendChild(column ? element("td") : element("th", "", { scope: "row" }));
      if (cell instanceof Node) box.replaceChildren(cell);
      else if (box.textContent !== String(cell)) box.textContent = String(cell);
    });
    while (row.cells.length > cells.length) row.deleteCell(-1);
  });
}

// As a sentence begins, but names stay as they are.
function began({ where, what }) {
  return where.some((name) => what.startsWith(name)) ? what : what[0].toUpperCase() + what.slice(1);
}

export function showFaults(list, faults) {
  const marks = { error: "Fault", warning: "Warning", notice: "Note" };
  const items = faults.map((fault) => {
    const item = element("li", "", { class: fault.severity });
    item.append(
      element("b", `${marks[fault.severity]} · ${fault.where.length > 2 ? fault.where.join(", ") : fault.where.join(" – ")}`),
      element("strong", `${began(fault)}.`),
      element("span", `Next: ${fault.next_step}.`),
    );
    return item;
  });
  if (!items.length) items.push(element("li", "None. Every node that answers is well.", { class: "none" }));
  const said = items.map((item) => item.textContent).join("\n");
  if (list.dataset.said === said) return; // a screen reader is told of changes only
  list.dataset.said = said;
  list.replaceChildren(...items);
}

export function showTrace(box, rows, keyId) {
  if (!rows.length) {
    box.replaceChildren(element("p", `No node asked knows key ${keyId}.`));
    return;
  }
  const start = Math.min(...rows.map((row) => row.created));
  const whole = Math.max(0.001, ...rows.flatMap((row) => row.history.map((step) => step.at - start)));
  const first = rows[0];
  const list = element("ol", "", { class: "timeline" });
  for (const row of rows) {
    const bad = ["failed", "voided", "expired"].includes(row.state);
    const item = element("li", "", { class: bad ? "bad" : "" });
    item.append(element("b", row.node), element("span", row.state));
    const times = [row.created, ...row.history.map((step) => step.at)].map((time) => (time - start) / whole);
    const bar = element("div", "", { class: "bar", "aria-hidden": "true" });
    bar.append(element("i"));
    bar.firstChild.style.left = `${Math.min(...times) * 100}%`;
    bar.firstChild.style.width = `${Math.max(0.7, (Math.max(...times) - Math.min(...times)) * 100)}%`;
    const steps = row.history.map((step) => `${step.state} after ${((step.at - start) * 1000).toFixed(0)} ms`);
    item.append(bar, element("div", steps.join(", ")));
    list.append(item);
  }
  const trust = Object.entries(first.trust || {}).map(([name, value]) => `${name}: ${value}`).join(", ");
  box.replaceChildren(
    element("p", `${first.size} bits of ${first.initiator} for ${first.targets.join(", ")}. ${trust}`),
    list,
  );
}

export function showChart(svg, text, perSecond, waits) {
  const most = Math.max(1, ...perSecond);
  svg.setAttribute("viewBox", `0 0 ${perSecond.length - 1} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  const line = perSecond.map((value, at) => `${at ? "L" : "M"}${at} ${96 - (value / most) * 90}`).join("");
  const shapes = [["area", `${line}L${perSecond.length - 1} 100L0 100Z`], ["", line]].map(([kind, path]) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "path");
    made.setAttribute("d", path);
    if (kind) made.setAttribute("class", kind);
    return made;
  });
  svg.replaceChildren(...shapes);
  const now = perSecond.slice(-6, -1).reduce((sum, value) => sum + value, 0) / 5;
  const wait = waits.length ? ` Applications wait ${waits.join(", ")}.` : "";
  text.textContent = `Last ${perSecond.length} s; ${now.toFixed(1)} keys/s now, at most ${most} in one second.${wait}`;
}

export function showAudit(list, lines) {
  const newest = [...lines].reverse();
  const said = newest.map((line) => `${line.node} ${line.n}`).join(" ");
  if (list.dataset.said === said) return; // whoever reads or has scrolled is not disturbed
  list.dataset.said = said;
  list.replaceChildren(...newest.map((line) => {
    const { n, at, event, node, ...rest } = line;
    const item = element("li");
    const more = Object.entries(rest).map(([name, value]) =>
      `${name} ${typeof value === "string" || typeof value === "number" ? value : JSON.stringify(value)}`);
    item.append(element("time", String(at).slice(0, 19).replace("T", " "), { datetime: String(at) }), " ",
      element("b", `${node}: ${event}`), element("div", more.join(", ")));
    return item;
  }));
}
