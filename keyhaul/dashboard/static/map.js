// The map: nodes and links as buttons of one SVG. Drawn once; `show` only changes classes and words.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1100;

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

export const nameOf = (a, b) => [a, b].sort().join("|");

export class NetworkMap {
  constructor(svg, onNode, onLink) {
    this.svg = svg;
    this.onNode = onNode;
    this.onLink = onLink;
    this.nodes = new Map();
    this.links = new Map();
  }

  draw(network) {
    this.svg.replaceChildren();
    this.nodes.clear();
    this.links.clear();
    const rows = new Set(network.nodes.map((node) => node.y.toFixed(2))).size;
    const height = Math.max(150, Math.min(620, rows * 150));
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    this.svg.classList.toggle("crowded", network.nodes.length > 30);
    const radius = network.nodes.length > 30 ? 8 : 17;
    const place = new Map(network.nodes.map((node) => [node.name, [node.x * WIDTH, node.y * (height - 60) + 20]]));
    for (const link of network.links) this.addLink(link, place.get(link.a), place.get(link.b));
    for (const node of network.nodes) this.addNode(node, place.get(node.name), radius);
  }

  addLink(link, [x1, y1], [x2, y2]) {
    const group = make("g", { class: `link ${link.kind}` });
    const ends = { x1, y1, x2, y2 };
    group.append(make("line", { ...ends, class: "line" }));
    if (link.kind === "qkd") group.append(make("line", { ...ends, class: "gap" }));
    group.append(make("line", { ...ends, class: "wide" }));
    const words = make("text", { x: (x1 + x2) / 2, y: (y1 + y2) / 2 - 12 });
    group.append(words);
    const kind = link.kind === "qkd" ? "quantum" : "post-quantum";
    button(group, `${kind} link ${link.a} to ${link.b}`, () => this.onLink(link));
    this.links.set(nameOf(link.a, link.b), { group, words, link, kind });
    this.svg.append(group);
  }

  addNode(node, [x, y], radius) {
    const group = make("g", { class: "node", transform: `translate(${x} ${y})` });
    group.append(make("rect", { class: "hit", x: -3 * radius, y: -1.5 * radius, width: 6 * radius, height: 5 * radius }));
    group.append(make("circle", { r: radius }));
    const mark = make("text", { class: "mark", y: 5 });
    group.append(mark, make("text", { y: radius + 19 }, node.name), make("text", { class: "sub", y: radius + 35 }, node.domain));
    button(group, `node ${node.name}, domain ${node.domain}`, () => this.onNode(node));
    this.nodes.set(node.name, { group, mark, node });
    this.svg.append(group);
  }

  // `states`: node -> {level, words}; `links`: name -> {bad, busy, words}; `route`: node names; `away`: link names
  show({ states, links, route, away, chosen }) {
    const way = new Set(route);
    const steps = new Set(route.slice(1).map((name, at) => nameOf(route[at], name)));
    for (const [name, { group, mark, node }] of this.nodes) {
      const state = states.get(name) || { level: "quiet", words: "not seen from here" };
      group.setAttribute("class", `node ${state.level}${way.has(name) ? " route" : ""}${chosen === name ? " chosen" : ""}`);
      group.setAttribute("aria-label", `node ${name}, domain ${node.domain}, ${state.words}`);
      mark.textContent = { bad: "!", warn: "!", good: "✓" }[state.level] || "";
    }
    for (const [name, { group, words, link, kind }] of this.links) {
      const state = links.get(name) || { words: "" };
      const classes = [state.bad && "bad", state.busy && "busy", steps.has(name) && "route", away.has(name) && "away"];
      group.setAttribute("class", ["link", link.kind, ...classes.filter(Boolean)].join(" "));
      const text = away.has(name) ? "taken away" : state.words;
      words.textContent = text;
      group.setAttribute("aria-label", `${kind} link ${link.a} to ${link.b}${text ? ", " + text : ""}`);
    }
  }
}
