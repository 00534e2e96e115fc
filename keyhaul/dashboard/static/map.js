// The map: nodes and links as buttons of one SVG, one unit a pixel. `draw` when the network or the room for it
// changes; `show`, once a second, only changes classes and words, and only those that are different.

const SVG = "http://www.w3.org/2000/svg";
const NARROW = 640; // pixels; below, what lies in a row stands in a column
const MANY = 30; // nodes; above, names are small and words stand on links in trouble alone
const STEP = 84; // pixels between two nodes of a column
const ROOM = [104, 56]; // pixels between two nodes for both lines of words at their link, and for one
const HUES = 6; // colours of domains in style.css

function make(name, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

function button(group, label, act) {
  group.setAttribute("tabindex", "0");
  group.setAttribute("role", "button");
  group.setAttribute("aria-label", label);
  group.addEventListener("click", act);
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); }
  });
}

function put(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const nameOf = (a, b) => [a, b].sort().join("|");

export class NetworkMap {
  constructor(svg, onNode, onLink) {
    this.svg = svg;
    this.onNode = onNode;
    this.onLink = onLink;
    this.nodes = new Map();
    this.links = new Map();
    this.network = null;
    this.width = 0;
    this.last = null;
    new ResizeObserver(() => this.fit()).observe(svg.parentElement);
  }

  draw(network) {
    this.network = network;
    this.width = 0;
    this.fit();
  }

  // Draws anew if there is another room for it; what was chosen by keyboard stays so.
  fit() {
    const width = Math.max(320, Math.floor(this.svg.getBoundingClientRect().width));
    if (!this.network || width === this.width) return;
    this.width = width;
    const focus = this.svg.contains(document.activeElement) ? document.activeElement.dataset.name : undefined;
    this.svg.replaceChildren();
    this.nodes.clear();
    this.links.clear();
    const { nodes, links } = this.network;
    const place = this.places(nodes);
    const islands = this.islands(nodes, links, place);
    this.svg.append(...islands.map(([shape]) => shape));
    for (const link of links) this.addLink(link, place.get(link.a), place.get(link.b));
    for (const node of nodes) this.addNode(node, place.get(node.name));
    this.svg.append(...islands.map(([, words]) => words));
    if (this.last) this.show(this.last);
    if (focus !== undefined) this.svg.querySelector(`[data-name="${CSS.escape(focus)}"]`)?.focus();
  }

  places(nodes) {
    const many = nodes.length > MANY;
    const narrow = this.width < NARROW;
    const lines = new Set(nodes.map((node) => node.y.toFixed(2))).size;
    const columns = new Set(nodes.map((node) => node.x.toFixed(2))).size;
    const inLines = lines * 5 < nodes.length || lines === 1;
    this.beside = narrow && inLines;
    this.radius = many ? (narrow ? 5 : 8) : 17;
    const height = this.beside ? Math.max(150, columns * STEP)
      : inLines ? Math.max(170, lines * 150) : Math.min(640, Math.max(300, this.width * (narrow ? 1.2 : 0.55)));
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.svg.classList.toggle("crowded", many);
    this.svg.classList.toggle("small", many && narrow);
    this.svg.classList.toggle("beside", this.beside);
    const [first, last] = [Math.min, Math.max].map((pick) => pick(...nodes.map((node) => node.x)));
    const along = (x) => (inLines && last > first ? (x - first) / (last - first) : x); // a line takes all the room
    const left = this.beside ? 40 : inLines ? 60 : 40;
    const right = this.beside ? 170 : inLines ? 60 : 40;
    return new Map(nodes.map(({ name, x, y }) => {
      const [across, down] = this.beside ? [lines === 1 ? 0 : y, along(x)] : [along(x), y];
      return [name, [left + across * (this.width - left - right), 34 + down * (height - 90)]];
    }));
  }

  // A soft shape under the nodes of each domain, along the links within it, and its name.
  islands(nodes, links, place) {
    const domains = new Map();
    for (const node of nodes) {
      if (!domains.has(node.domain)) domains.set(node.domain, []);
      domains.get(node.domain).push(node.name);
    }
    if (domains.size > HUES) return [];
    return [...domains].map(([domain, names], at) => {
      const inside = new Set(names);
      const shape = make("g", { class: `island hue${at % HUES}`, "stroke-width": this.radius * 3.4 });
      for (const name of names) {
        const [x, y] = place.get(name);
        shape.append(make("line", { x1: x, y1: y, x2: x, y2: y }));
      }
      for (const { a, b } of links.filter((link) => inside.has(link.a) && inside.has(link.b))) {
        const [[x1, y1], [x2, y2]] = [place.get(a), place.get(b)];
        shape.append(make("line", { x1, y1, x2, y2 }));
      }
      const [x, y] = names.map((name) => place.get(name)).reduce((one, two) => (two[1] < one[1] || (two[1] === one[1] && two[0] < one[0]) ? two : one));
      const words = make("text", {
        class: "island-name", x: this.beside ? x + this.radius + 12 : Math.max(2, x - this.radius * 1.7),
        y: Math.max(12, y - this.radius * 1.7 - (this.beside ? -9 : 5)),
      }, domain);
      return [shape, words];
    });
  }

  addLink(link, [x1, y1], [x2, y2]) {
    const name = nameOf(link.a, link.b);
    const room = this.beside ? Infinity : Math.hypot(x2 - x1, y2 - y1) - 2 * this.radius;
    const tight = room < ROOM[1] ? "tightest" : room < ROOM[0] ? "tight" : "";
    const group = make("g", { "data-name": name });
    const ends = { x1, y1, x2, y2 };
    group.append(make("line", { ...ends, class: "line" }));
    if (link.kind === "qkd") group.append(make("line", { ...ends, class: "gap" }));
    group.append(make("line", { ...ends, class: "flow" }), make("line", { ...ends, class: "wide" }));
    const [x, y] = [(x1 + x2) / 2, (y1 + y2) / 2];
    const above = make("text", this.beside ? { x: x + this.radius + 12, y: y - 4 } : { x, y: y - 11 });
    const below = make("text", { class: "more", ...(this.beside ? { x: x + this.radius + 12, y: y + 11 } : { x, y: y + 20 }) });
    group.append(above, below);
    const kind = link.kind === "qkd" ? "quantum" : "post-quantum";
    button(group, `${kind} link ${link.a} to ${link.b}`, () => this.onLink(link));
    this.links.set(name, { group, above, below, link, kind, tight });
    this.svg.append(group);
  }

  addNode(node, [x, y]) {
    const { radius, beside } = this;
    const group = make("g", { class: "node", transform: `translate(${x} ${y})`, "data-name": node.name });
    const box = beside ? { x: -1.5 * radius, y: -1.5 * radius, width: 200, height: 3 * radius } : { x: -3 * radius, y: -1.5 * radius, width: 6 * radius, height: 5 * radius };
    group.append(make("rect", { class: "hit", ...box }), make("circle", { r: radius }));
    const mark = make("text", { class: "mark", y: 5 });
    const apps = node.saes.length > 1 ? `${node.saes[0]} +${node.saes.length - 1}` : node.saes[0] || "";
    const spots = beside ? [{ x: radius + 12, y: -1 }, { x: radius + 12, y: 15 }] : [{ y: radius + (radius > 9 ? 19 : 12) }, { y: radius + 35 }];
    group.append(mark, make("text", { class: "name", ...spots[0] }, node.name), make("text", { class: "sub", ...spots[1] }, apps));
    button(group, `node ${node.name}, domain ${node.domain}`, () => this.onNode(node));
    this.nodes.set(node.name, { group, mark, node });
    this.svg.append(group);
  }

  // `states`: node -> {level, words}; `links`: name -> {bad, warn, level, words, more, from, spoken}: `from` is the
  // end that keys leave from right now; `route`: node names; `away`: link names
  show(shown) {
    this.last = shown;
    const { states, links, route, away, chosen } = shown;
    const way = new Set(route);
    const steps = new Set(route.slice(1).map((name, at) => nameOf(route[at], name)));
    for (const [name, { group, mark, node }] of this.nodes) {
      const state = states.get(name) || { level: "quiet", words: "not seen from here" };
      put(group, "class", `node ${state.level}${way.has(name) ? " route" : ""}${chosen === name ? " chosen" : ""}`);
      put(group, "aria-label", `node ${name}, domain ${node.domain}, ${state.words}`);
      say(mark, { bad: "!", warn: "!", good: "✓" }[state.level] || "");
    }
    for (const [name, { group, above, below, link, kind, tight }] of this.links) {
      const state = links.get(name) || { words: "", more: "", spoken: "" };
      const gone = away.has(name);
      const flow = state.from && (state.from === link.a ? "busy" : "busy back");
      const classes = [tight, state.bad && "bad", state.warn && "warn", flow, steps.has(name) && "route", gone && "away", chosen === name && "chosen"];
      put(group, "class", ["link", link.kind, ...classes.filter(Boolean)].join(" "));
      say(above, gone ? "taken away" : state.words);
      say(below, gone ? "" : state.more);
      const spoken = gone ? "taken away" : state.spoken;
      put(group, "aria-label", `${kind} link ${link.a} to ${link.b}${spoken ? ", " + spoken : ""}`);
    }
  }
}
