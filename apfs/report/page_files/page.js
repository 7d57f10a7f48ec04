// The page around the matrices: the time line, what happened at a moment, and the tables of each host.

const data = JSON.parse(document.getElementById("data").textContent);
const hosts = data.hosts.map((host) => new Host(host));
const letters = hosts.map((_, index) => (hosts.length > 1 ? String.fromCharCode(65 + index) : ""));
const ROW = 31, MOST = 16;
const WORDS = { refusal: "refused", none: "unasked" };

// Make an element. Texts of hosts become text nodes, never markup.
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Put children into an element in place of those that it has.
function fill(element, ...children) {
  element.replaceChildren(...h("p", {}, ...children).childNodes);
}

// Give an element these children, and leave those alone that it has already: there may be thousands.
function renew(element, children) {
  const wanted = new Set(children);
  for (const child of [...element.childNodes]) if (!wanted.has(child)) child.remove();
  let next = element.firstChild;
  for (const child of children) {
    if (child === next) next = next.nextSibling;
    else element.insertBefore(child, next);
  }
}

const counts = (found) => Object.entries(found).map(([kind, count]) => `${count.toLocaleString("en")} × ${kind}`).join(", ");

// -- moments: how many steps of which host have been taken at each position of the time line ----------

const moments = [hosts.map(() => 0)];
for (const [host] of data.order) {
  moments.push(moments.at(-1).map((taken, index) => taken + (index === host ? 1 : 0)));
}
let position = 0;
let listed = data.order.map((_, index) => index + 1);

function stepAt(where) {
  if (!where) return null;
  const [host, index] = data.order[where - 1];
  return { host, step: hosts[host].steps[index] };
}

function namedIn(step) {
  const texts = [step.why ?? "", ...(step.effects ?? []).filter(([, kind]) => kind === "log").map(([, , text]) => text)];
  texts.push(...(step.verdicts?.findings ?? []).map(([queue]) => queue ?? ""));
  return new Set(texts.join(" ").match(/\b[0-9a-f]{2}\.[0-9a-f]{4}\b/g) ?? []);
}

// -- the parts of the page ----------------------------------------------------------------------------

class Panel {
  constructor(host, letter) {
    this.host = host;
    const canvas = h("canvas", {
      tabindex: 0, role: "application", "aria-roledescription": "matrix of queues",
      "aria-label": `Queues of ${host.title}: adapters as rows, domains as columns. Arrow keys move.`,
    });
    this.box = h("div", { class: "box" }, h("div", { class: "size" }, canvas));
    this.readout = h("p", { class: "readout soft", "aria-live": "polite" });
    this.legend = h("ul", { class: "legend", "aria-label": "Owners of the queues" });
    this.tables = h("div");
    this.drawn = new Map();
    const zoom = (text, title, steps) => h("button", { title, "aria-label": title, onclick: () => this.matrix.zoomBy(steps) }, text);
    this.element = h("section", { class: "host", "aria-label": host.title },
      h("h2", {}, letter && `${letter}: `, host.title),
      h("div", { class: "facts" }, Object.entries(host.facts).map(([name, value]) => h("span", {}, `${name} `, h("b", {}, value)))),
      host.note && h("p", { class: "note" }, host.note),
      this.box,
      h("div", { class: "tools" }, this.readout, zoom("−", "smaller cells", -1), zoom("+", "larger cells", 1)),
      this.legend, this.tables);
    this.matrix = new Matrix(host, this.box, canvas, () => this.read());
    if (!host.axes.adapters.length || !host.axes.domains.length) {
      this.box.replaceChildren(h("p", { class: "soft" }, "This host never has any queues."));
    }
  }

  show(index, before, named) {
    Object.assign(this, { index, before });
    this.matrix.show(index, before, named);
    this.drawLegend();
    renew(this.tables, [...this.sections()]);
    this.read();
  }

  read() {
    const place = this.matrix.hover ?? this.matrix.cursor;
    if (!place) return fill(this.readout, "Point at a queue, or move to it with the arrow keys, for details.");
    const { name, text } = this.host.describe(this.index, place.row, place.column);
    return fill(this.readout, h("b", { class: "mono" }, name), ` ${text}`);
  }

  // How many queues each owner has: of devices the first ones of each kind, the others together.
  *owners() {
    const { kind, device } = this.host.cells(this.index), found = new Map(), inOrder = (map) => [...map].sort(([a], [b]) => a - b);
    for (let at = 0; at < kind.length; at++) {
      if (!kind[at]) continue;
      const counts = found.get(kind[at]) ?? new Map(), number = KINDS[kind[at]].device ? device[at] : 0;
      found.set(kind[at], counts.set(number, (counts.get(number) ?? 0) + 1));
    }
    for (const [shown, counts] of inOrder(found)) {
      const { name, device: numbered } = KINDS[shown], rows = inOrder(counts), others = rows.splice(MOST);
      for (const [number, count] of rows) yield [shown, number, numbered ? `${name} (device ${number + 1})` : name, count];
      const left = others.reduce((sum, [, count]) => sum + count, 0);
      if (left) yield [shown, others[0][0], `${name} (${others.length.toLocaleString("en")} more devices)`, left];
    }
  }

  drawLegend() {
    const items = [...this.owners()].map(([shown, number, text, count]) => {
      const swatch = h("canvas", { width: 40, height: 40, "aria-hidden": "true" });
      const context = swatch.getContext("2d");
      context.scale(2, 2);
      drawCell(context, 0, 0, 20, 20, shown, number, 20);
      drawSign(context, 0, 0, 20, shown, number);
      return h("li", {}, swatch, h("span", {}, `${text} `, h("b", {}, count.toLocaleString("en"))));
    });
    this.legend.replaceChildren(...items);
  }

  *sections() {
    const state = this.host.state(this.index), was = this.host.state(this.before);
    const inOrder = (found, key) => Object.entries(found).sort(([a], [b]) => (key(a) < key(b) ? -1 : 1));
    const devices = inOrder(state.mdevs, (uuid) => this.host.numbers.get(uuid));
    if (devices.length) yield h("h3", {}, "Mediated devices");
    for (const [uuid, mdev] of devices) yield this.device(uuid, mdev, was.mdevs[uuid], state.guests[uuid]);
    yield h("h3", {}, "Host");
    const rows = { ...state.masks, ...state.host }, before = { ...was.masks, ...was.host };
    yield h("table", {}, h("tbody", {}, Object.entries(rows).map(([name, value]) =>
      h("tr", { class: before[name] === value ? null : "moved" }, h("th", { scope: "row" }, name), h("td", { class: "mono" }, value || "none")))));
    for (const [title, heads, found] of [["Exceptions", ["queue", "what"], state.exceptions], ["Injected faults", ["attribute", "error"], state.faults]]) {
      if (Object.keys(found).length) yield* [h("h3", {}, title), this.table(heads, inOrder(found, (name) => name))];
    }
    yield h("h3", {}, "Cards");
    yield this.table(["card", "type", "driver", "state", "queues"], this.alike(state));
  }

  alike(state) { // cards that have everything in common share a row
    const groups = new Map();
    for (const [apid, number] of Object.entries(state.cards).sort()) groups.set(number, [...(groups.get(number) ?? []), parseInt(apid, 16)]);
    return [...groups].map(([number, apids]) => {
      const { type, driver, state: how, queues } = this.host.cards[number];
      return [runs(apids), type, driver, how, Object.entries(queues).map(([name, domains]) => h("div", {}, h("span", { class: "soft" }, `${name} `), domains))];
    });
  }

  label(uuid) {
    const number = this.host.numbers.get(uuid);
    return h("span", { class: `hue-${number % HUES}` }, h("span", { class: "number" }, `${number + 1}`), " ", h("code", {}, uuid));
  }

  // The part of a device. As long as nothing in it changes it is the same element: there may be thousands.
  device(uuid, ...facts) {
    const pressed = this.matrix.highlight === this.host.numbers.get(uuid), drawn = this.drawn.get(uuid);
    if (drawn?.pressed === pressed && facts.every((fact, index) => fact === drawn.facts[index])) return drawn.element;
    const element = this.drawDevice(uuid, pressed, ...facts);
    this.drawn.set(uuid, { facts, pressed, element });
    return element;
  }

  drawDevice(uuid, pressed, mdev, was, guest) {
    const number = this.host.numbers.get(uuid);
    const highlight = () => {
      this.matrix.highlight = pressed ? null : number;
      this.show(this.index, this.before, this.matrix.named);
      this.drawn.get(uuid).element.querySelector("button").focus();
    };
    const row = (name, key) => h("tr", { class: was === mdev || JSON.stringify(was?.[key]) === JSON.stringify(mdev[key]) ? null : "moved" },
      h("th", { scope: "row" }, name), ["adapters", "domains", "control_domains"].map((axis) => h("td", { class: "mono" }, mdev[key][axis] || "none")));
    const filtered = Object.entries(mdev.filtered);
    return h("article", { class: `device hue-${number % HUES}` },
      h("header", {}, this.label(uuid), h("button", { "aria-pressed": `${pressed}`, onclick: highlight, title: "show in the matrix" }, "show")),
      h("div", { class: "soft" }, `opened by ${mdev["opened by"]}, migration ${mdev.migration}`),
      guest && h("div", { class: "soft" }, `its guest sees cards ${guest.cards}; queues: ${guest.queues}; modules: ${guest.modules}`,
        guest.mode === "usual" ? "" : `; ${guest.mode}`, guest.guests === "none" ? "" : `; nested guests: ${guest.guests}`),
      h("table", {}, h("thead", {}, h("tr", {}, ["", "adapters", "domains", "control"].map((head) => h("th", { scope: "col" }, head)))),
        h("tbody", {}, row("matrix", "matrix"), row("guest_matrix", "guest_matrix"))),
      filtered.length && h("ul", {}, filtered.map(([what, why]) =>
        h("li", {}, h("b", { class: "mono" }, what), " is filtered out: ", h("span", { class: "why" }, why)))) || null);
  }

  table(heads, rows) {
    return h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", { class: "mono" }, cell))))));
  }
}

function runs(numbers) {
  const texts = [];
  for (let start = 0; start < numbers.length; ) {
    let end = start;
    while (numbers[end + 1] === numbers[end] + 1) end++;
    texts.push(hex(numbers[start], 2) + (end > start ? `-${hex(numbers[end], 2)}` : ""));
    start = end + 1;
  }
  return texts.join(" ");
}

const panels = hosts.map((host, index) => new Panel(host, letters[index]));
const slider = h("input", { type: "range", min: 0, max: data.order.length, value: 0, "aria-label": "moment", oninput: () => go(Number(slider.value)) });
const strip = h("canvas", { "aria-hidden": "true" });
const counter = h("output", { id: "counter" });
const button = (text, title, act) => h("button", { title, "aria-label": title, onclick: act }, text);
const buttons = [
  button("|◀", "the beginning (Home)", () => go(0)), button("◀", "one step back (Left)", () => move(-1)),
  button("▶", "one step forward (Right)", () => move(1)), button("▶|", "the end (End)", () => go(data.order.length)),
];
const nextRefusal = button("next refusal", "next refusal (r)", () => toRefusal(1));
const now = h("section", { class: "now", "aria-live": "polite", "aria-label": "what happened at this moment" });
const list = h("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": "steps" });
const rows = h("div", { class: "rows" }), space = h("div", {});
list.append(space, rows);
const search = h("input", { type: "search", placeholder: "search (/)", "aria-label": "search in the steps", oninput: () => select() });
const choice = h("select", { "aria-label": "which steps", onchange: () => select() },
  [["all", "all steps"], ["patch", "steps with changes"], ["refusal", "refusals"], ["migration", "migration"]].map(([value, text]) => h("option", { value }, text)));
const found = h("span", { class: "soft", "aria-live": "polite" });
const printed = h("table", { class: "print-only" });

document.body.append(
  h("div", { class: "bar" },
    h("div", { class: "title" }, h("h1", {}, data.title), h("span", { class: "soft" }, `report by apfs ${data.apfs}`)),
    h("div", { class: "time", role: "group", "aria-label": "time line" }, buttons.slice(0, 3), buttons[3], nextRefusal,
      h("div", { class: "track" }, strip, slider), counter)),
  h("main", {},
    h("div", { class: "hosts" }, panels.map((panel) => panel.element)),
    h("aside", { class: "side" }, now, h("section", {},
      h("h2", {}, "Steps "), h("div", { class: "filters" }, search, choice), found, list, printed))),
  h("footer", { class: "keys" }, [["←", "→"], " one step, ", ["Home", "End"], " first and last step, ", ["r", "R"], " next and previous refusal, ", ["/"],
    " search; in the matrix the arrows move from queue to queue, ", ["+", "−"], " resize it. ",
    hosts.length > 1 ? "The hosts have no common clock: between them, only the order of steps of a migration is certain." : ""]
    .map((part) => (Array.isArray(part) ? part.map((key) => h("kbd", {}, key)) : part))));

// -- the list of steps: only the rows that can be seen exist -------------------------------------------

function rowOf(where) {
  const { host, step } = stepAt(where);
  const changed = step.patch && h("span", { class: "dot", title: "changes the state" }, "●");
  return h("div", { class: "row", id: `step-${where}`, role: "option", "aria-selected": `${where === position}`, "aria-posinset": listed.indexOf(where) + 1,
    "aria-setsize": listed.length, title: step.what },
    h("span", { class: "n" }, `${step.last}`), letters[host] && h("span", { class: "letter" }, letters[host]),
    h("span", { class: `badge ${step.kind}` }, step.errno ?? WORDS[step.kind] ?? step.kind), h("span", { class: "text mono" }, step.what), changed);
}

function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5), count = Math.ceil(list.clientHeight / ROW) + 10;
  space.style.height = `${listed.length * ROW}px`;
  rows.style.transform = `translateY(${first * ROW}px)`;
  rows.replaceChildren(...listed.slice(first, first + count).map(rowOf));
  const chosen = document.getElementById(`step-${position}`);
  if (chosen) list.setAttribute("aria-activedescendant", chosen.id);
  else list.removeAttribute("aria-activedescendant");
}

function select() {
  const words = search.value.toLowerCase(), kind = choice.value;
  listed = data.order.map((_, index) => index + 1).filter((where) => {
    const { step } = stepAt(where);
    if (kind !== "all" && !(kind === "refusal" ? step.kind === kind : step[kind])) return false;
    step.text ??= JSON.stringify([step.what, step.where, step.why, step.errno, step.kind, step.effects]).toLowerCase();
    return !words || step.text.includes(words);
  });
  found.textContent = `${listed.length.toLocaleString("en")} of ${data.order.length.toLocaleString("en")}`;
  reveal();
  drawRows();
}

function reveal() {
  const index = listed.indexOf(position);
  if (index < 0) return;
  const top = index * ROW, seen = list.clientHeight;
  if (top < list.scrollTop || top + ROW > list.scrollTop + seen) list.scrollTop = top - (seen - ROW) / 2;
}

// -- one moment ---------------------------------------------------------------------------------------

function tell() {
  const at = stepAt(position);
  if (!at) {
    const text = data.order.length ? "Nothing has happened yet: the hosts are as they were when their journals began." : "Nothing happened.";
    return fill(now, h("div", { class: "head" }, h("span", { class: "badge" }, "start")), h("p", { class: "soft" }, hosts.length > 1 ? text : text.replace("hosts are", "host is").replace("they were", "it was").replace("their journals", "its journal")));
  }
  const { host, step } = at, taken = moments[position][host];
  const moves = step.patch ? hosts[host].moves(taken - 1, taken) : [];
  const records = step.first === step.last ? `record ${step.last}` : `records ${step.first} to ${step.last}`;
  return fill(now,
    h("div", { class: "head" }, letters[host] && h("b", {}, letters[host]), h("span", { class: `badge ${step.kind}` }, WORDS[step.kind] ?? step.kind), h("span", { class: "soft" }, records)),
    h("div", { class: "what mono" }, step.what),
    step.where ? h("div", { class: "soft mono" }, step.where) : null,
    step.why ? h("div", { class: "refused", role: "note" }, step.why) : null,
    moves.length ? h("ul", { class: "moves" }, moves.slice(0, 6).map((text) => h("li", {}, text))) : null,
    step.patch && !moves.length ? h("p", { class: "soft" }, "No queue changes its owner; the tables show what changes.") : null,
    step.verdicts ? verdicts(step.verdicts) : null,
    step.effects ? h("div", { class: "effects", tabindex: 0, role: "region", "aria-label": "effects" }, h("table", {},
      h("thead", {}, h("tr", {}, ["record", "type", "effect"].map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, step.effects.map(([number, kind, what, why]) => h("tr", {}, h("td", {}, `${number}`), h("td", {}, kind), h("td", { class: "mono" }, what, why && h("div", { class: "why" }, why)))))),
      step.left && h("p", { class: "soft" }, `and ${counts(step.left)}`)) : null);
}

function verdicts({ findings, left, fitting }) { // what a target thinks of each queue in a stream
  const heads = ["queue", "verdict", "source", "target"];
  return h("div", { class: "verdicts scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, findings.map(([queue, what, source, target]) => h("tr", {}, h("td", { class: "mono" }, queue || "all"),
      h("td", {}, h("span", { class: "why" }, `✕ ${what}`)), h("td", { class: "mono" }, source), h("td", { class: "mono" }, target))),
    fitting.map((queue) => h("tr", {}, h("td", { class: "mono" }, queue), h("td", {}, "✓ fits"), h("td"), h("td"))))),
  left ? h("p", { class: "soft" }, `and ${left.toLocaleString("en")} more`) : null);
}

function go(where) {
  position = Math.min(Math.max(where, 0), data.order.length);
  const taken = moments[position], before = moments[Math.max(position - 1, 0)], at = stepAt(position);
  panels.forEach((panel, index) => panel.show(taken[index], before[index], at && at.host === index ? namedIn(at.step) : new Set()));
  slider.value = position;
  slider.setAttribute("aria-valuetext", at ? `${position} of ${data.order.length}: ${at.step.what}` : "the beginning");
  counter.textContent = `moment ${position.toLocaleString("en")} of ${data.order.length.toLocaleString("en")}`;
  buttons[0].disabled = buttons[1].disabled = position === 0;
  buttons[2].disabled = buttons[3].disabled = position === data.order.length;
  tell();
  reveal();
  drawRows();
  history.replaceState(null, "", `#${position}`);
}

function move(by) { // among the steps that are listed
  const next = by > 0 ? listed.find((where) => where > position) : listed.findLast((where) => where < position);
  if (next !== undefined) go(next);
  else if (by < 0) go(0);
}

function toRefusal(by) {
  const refused = listed.filter((where) => ["refusal", "crash"].includes(stepAt(where).step.kind));
  const next = by > 0 ? refused.find((where) => where > position) : refused.findLast((where) => where < position);
  if (next !== undefined) go(next);
}

function drawStrip() {
  const width = strip.clientWidth, scale = devicePixelRatio || 1, count = data.order.length;
  strip.width = width * scale;
  strip.height = 7 * scale;
  const context = strip.getContext("2d");
  context.scale(scale, scale);
  for (const wrong of [false, true]) { // in front: what was refused
    data.order.forEach(([host, index], at) => {
      const step = hosts[host].steps[index];
      if (["refusal", "crash"].includes(step.kind) !== wrong || (!wrong && !step.patch)) return;
      context.fillStyle = colours[wrong ? "wrong" : "zcrypt"];
      context.fillRect(((at + 1) / count) * width - 1, wrong ? 0 : 2, 2, wrong ? 7 : 5);
    });
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target === search) {
    if (event.key === "Escape") search.blur();
    return;
  }
  if (event.target === choice) return;
  const keys = { Home: () => go(0), End: () => go(data.order.length), r: () => toRefusal(1), R: () => toRefusal(-1), "/": () => search.focus() };
  if (event.target !== slider) Object.assign(keys, { ArrowLeft: () => move(-1), ArrowRight: () => move(1) });
  if (event.target === list) Object.assign(keys, { ArrowUp: () => move(-1), ArrowDown: () => move(1), PageUp: () => go(position - 10), PageDown: () => go(position + 10) });
  const act = keys[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});

function redraw() {
  readColours();
  panels.forEach((panel) => {
    panel.matrix.paper = document.documentElement.classList.contains("printing");
    panel.matrix.layout();
    panel.drawLegend();
  });
  drawStrip();
}

list.addEventListener("scroll", drawRows);
list.addEventListener("click", (event) => { // not on the rows, which may be drawn again while a button is down
  const index = Math.floor((event.clientY - list.getBoundingClientRect().top - list.clientTop + list.scrollTop) / ROW);
  if (listed[index]) go(listed[index]);
});
addEventListener("resize", () => { drawStrip(); drawRows(); });
addEventListener("hashchange", () => go(Number(location.hash.slice(1)) || 0));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => { // on paper: light, the whole matrix, and the steps as a table
  document.documentElement.classList.add("printing");
  redraw();
  printed.replaceChildren(h("tbody", {}, listed.map(stepAt).map(({ host, step }) => h("tr", {}, h("td", {}, `${letters[host]} ${step.last}`), h("td", {}, WORDS[step.kind] ?? step.kind),
    h("td", { class: "mono" }, `${step.what} `, h("span", { class: "soft" }, step.where ?? ""), step.why && h("div", { class: "why" }, step.why))))));
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printing");
  printed.replaceChildren();
  redraw();
});

readColours();
select();
go(location.hash ? Number(location.hash.slice(1)) || 0 : data.order.length);
drawStrip();
