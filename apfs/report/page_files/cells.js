// What a host was like at a moment, and who had each of its queues. Nothing here touches the document.

const NONE = 0, ZCRYPT = 1, OFFLINE = 2, FREE = 3, ASSIGNED = 4, GUEST = 5, FILTERED = 6, UNBOUND = 7, ABSENT = 8;

// Each kind of cell: its name, the sign that is drawn where there is room, and whether a device's number is shown.
const KINDS = [
  { name: "no queue", sign: "" },
  { name: "zcrypt", sign: "z" },
  { name: "zcrypt, offline", sign: "o" },
  { name: "vfio_ap, free", sign: "f" },
  { name: "assigned, no guest runs", sign: "", device: true },
  { name: "in a guest", sign: "", device: true },
  { name: "assigned, but filtered out", sign: "", device: true },
  { name: "no driver", sign: "?" },
  { name: "assigned, but the queue does not exist", sign: "", device: true },
];

const DECONFIGURED = 1, CHECKSTOPPED = 2, EXCEPTION = 4;

// Apply a merge patch (RFC 7396). What it leaves alone is shared by both states.
function patched(state, patch) {
  const result = { ...state };
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete result[key];
    else if (typeof value === "object") result[key] = patched(result[key] ?? {}, value);
    else result[key] = value;
  }
  return result;
}

// The numbers of a text such as "0004-0006 00ab", as one byte for each of 256.
const bitsOf = (() => {
  const known = new Map();
  return (text) => {
    let bits = known.get(text);
    if (!bits) {
      bits = new Uint8Array(256);
      for (const run of (text ?? "").split(" ").filter(Boolean)) {
        const [first, last = first] = run.split("-").map((digits) => parseInt(digits, 16));
        bits.fill(1, first, last + 1);
      }
      known.set(text, bits);
    }
    return bits;
  };
})();

const hex = (number, digits) => number.toString(16).padStart(digits, "0");
const apqn = (apid, apqi) => `${hex(apid, 2)}.${hex(apqi, 4)}`;

// The parts of a state that can have thousands of entries.
const LARGE = ["mdevs", "guests", "exceptions", "faults"];

// A state that goes along the steps of a host, in both directions. A step costs what it changes, not what there is.
class Walker {
  constructor(first, changes) {
    this.changes = changes;
    this.index = 0;
    this.state = { ...first };
    for (const part of LARGE) this.state[part] = { ...first[part] };
  }

  go(index) {
    while (this.index < index) this.take(this.changes[this.index++], "after");
    while (this.index > index) this.take(this.changes[--this.index], "before");
    return this.state;
  }

  take(changes, which) {
    for (const { part, name, [which]: value } of changes) {
      const place = part ? this.state[part] : this.state;
      if (value === undefined) delete place[name];
      else place[name] = value;
    }
  }
}

// What each step replaces, and by what. What is equal at two moments is the same object.
function changesOf({ first, steps }) {
  const all = [], walker = new Walker(first, all);
  for (const { patch } of steps) {
    const changes = [];
    for (const [part, values] of Object.entries(patch ?? {})) {
      const before = walker.state[part];
      if (!LARGE.includes(part)) changes.push({ name: part, before, after: patched(before, values) });
      else for (const name of Object.keys(values)) {
        changes.push({ part, name, before: before[name], after: patched({ [name]: before[name] }, { [name]: values[name] })[name] });
      }
    }
    all.push(changes);
    walker.go(all.length);
  }
  return all;
}

// A host: its states, one more than it has steps, and the cells of each of them.
class Host {
  constructor(data) {
    Object.assign(this, data);
    const changes = changesOf(data);
    this.walkers = [new Walker(data.first, changes), new Walker(data.first, changes)];
    this.versions = [0]; // the first moment with the same state
    for (const { patch } of data.steps) this.versions.push(patch ? this.versions.length : this.versions.at(-1));
    const patches = data.steps.map((step) => step.patch?.mdevs ?? {});
    this.devices = [...new Set([data.first.mdevs, ...patches].flatMap(Object.keys))]; // numbered as they appear
    this.numbers = new Map(this.devices.map((uuid, number) => [uuid, number]));
    this.known = new Map();
  }

  // The state at a moment. It is valid until those of two others have been asked for.
  state(index) {
    const version = this.versions[index];
    if (this.walkers[1].index !== version) this.walkers.reverse();
    return this.walkers[1].go(version);
  }

  card(state, apid) {
    return this.cards[state.cards[hex(apid, 2)]];
  }

  // Kind, device and flags of each cell of the matrix, row by row.
  cells(index) {
    const version = this.versions[index];
    let cells = this.known.get(version);
    if (!cells) {
      cells = this.make(this.state(index));
      if (this.known.size > 16) this.known.clear();
      this.known.set(version, cells);
    }
    return cells;
  }

  make(state) {
    const { adapters, domains } = this.axes, width = domains.length;
    const kind = new Uint8Array(adapters.length * width), flags = new Uint8Array(kind.length);
    adapters.forEach((apid, row) => {
      const queues = this.card(state, apid)?.queues ?? {};
      const [zcrypt, offline, ours, unbound, off, stopped] = [
        "zcrypt", "offline", "vfio_ap", "unbound", "deconfigured", "checkstopped",
      ].map((name) => bitsOf(queues[name]));
      domains.forEach((apqi, column) => {
        const at = row * width + column;
        kind[at] = zcrypt[apqi] ? ZCRYPT : offline[apqi] ? OFFLINE : ours[apqi] ? FREE : unbound[apqi] ? UNBOUND : NONE;
        flags[at] = (off[apqi] ? DECONFIGURED : 0) | (stopped[apqi] ? CHECKSTOPPED : 0);
      });
    });
    const device = this.assign(state, kind);
    for (const name of Object.keys(state.exceptions)) {
      const row = adapters.indexOf(parseInt(name, 16)), column = domains.indexOf(parseInt(name.slice(3), 16));
      if (row >= 0 && column >= 0) flags[row * width + column] |= EXCEPTION;
    }
    return { kind, device, flags };
  }

  // Give devices what is assigned to them: the number of the device of each cell, -1 for none. No queue has two.
  assign(state, kind) {
    const { adapters, domains } = this.axes, device = new Int32Array(kind.length).fill(-1);
    const places = (numbers, bits) => [...numbers.keys()].filter((place) => bits[numbers[place]]);
    for (const [uuid, { matrix, guest_matrix: given, guest }] of Object.entries(state.mdevs)) {
      if (!matrix.adapters || !matrix.domains) continue;
      const has = bitsOf(given.adapters), hasDomains = bitsOf(given.domains), number = this.numbers.get(uuid);
      const columns = places(domains, bitsOf(matrix.domains));
      for (const row of places(adapters, bitsOf(matrix.adapters))) {
        for (const column of columns) {
          const at = row * domains.length + column, passed = has[adapters[row]] && hasDomains[domains[column]];
          device[at] = number;
          kind[at] = kind[at] === NONE ? ABSENT : !passed ? FILTERED : guest === "runs" ? GUEST : ASSIGNED;
        }
      }
    }
    return device;
  }

  // Everything about one cell as a text: also for those who do not see colours, or nothing at all.
  describe(index, row, column) {
    const state = this.state(index), cells = this.cells(index), { adapters, domains } = this.axes;
    const apid = adapters[row], apqi = domains[column], at = row * domains.length + column;
    const name = apqn(apid, apqi), kind = KINDS[cells.kind[at]];
    const uuid = this.devices[cells.device[at]], card = this.card(state, apid);
    const words = [kind.name];
    if (uuid) {
      words[0] += `: device ${cells.device[at] + 1}, ${uuid}`;
      const why = state.mdevs[uuid].filtered;
      const reason = why[hex(apid, 2)] ?? why[hex(apqi, 4)];
      if (reason) words.push(`not passed to the guest: ${reason}`);
    }
    if (cells.flags[at] & DECONFIGURED) words.push("deconfigured");
    if (cells.flags[at] & CHECKSTOPPED) words.push("check-stopped");
    if (state.exceptions[name]) words.push(state.exceptions[name]);
    const kept = bitsOf(state.masks.apmask)[apid] && bitsOf(state.masks.aqmask)[apqi];
    words.push(kept ? "reserved for zcrypt by apmask and aqmask" : "not reserved by apmask and aqmask");
    if (card) words.push(`card ${card.type}, ${card.state}`);
    return { name, text: words.join("; ") };
  }

  // How many cells went from one kind to another between two states, most frequent first.
  moves(before, after) {
    const counts = new Map(), one = this.cells(before), other = this.cells(after);
    for (let at = 0; at < one.kind.length; at++) {
      if (one.kind[at] !== other.kind[at] || one.device[at] !== other.device[at]) {
        const text = `${this.who(one, at)} → ${this.who(other, at)}`;
        counts.set(text, (counts.get(text) ?? 0) + 1);
      }
    }
    return [...counts].sort((a, b) => b[1] - a[1]).map(([text, count]) => `${count.toLocaleString("en")} ${count > 1 ? "queues" : "queue"}: ${text}`);
  }

  who(cells, at) {
    const { name, device } = KINDS[cells.kind[at]];
    return device ? `${name} (device ${cells.device[at] + 1})` : name;
  }
}
