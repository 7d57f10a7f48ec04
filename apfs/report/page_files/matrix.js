// The matrix of adapters and domains, drawn on a canvas that is as large as what can be seen of it.

const HUES = 8, LARGEST = 44, SMALLEST = 2, WHOLE_FROM = 4, SIGNS_FROM = 13;
const PAPER = { width: 700, height: 900, scale: 3 }; // what fits on a page, in CSS pixels, and how fine it is printed

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "card", "ink", "soft", "line", "focus", "wrong", "changed", "zcrypt", "offline", "free"];
  names.push("free-ink", "unbound", "unbound-ink", "on-solid", "empty", ...Array.from({ length: HUES }, (_, n) => `device-${n}`));
  colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  colours.sans = style.getPropertyValue("--sans");
}

// Draw one cell, or a run of equal cells. What it shows by colour it shows by shape, too: filled, pale, hatched, framed.
function drawCell(context, x, y, width, height, kind, device, size) {
  const hue = colours[`device-${device % HUES}`], inset = size > 8 ? 1 : size > 4 ? 0.5 : 0;
  const box = [x + inset, y + inset, width - 2 * inset, height - 2 * inset];
  const plain = { [NONE]: "empty", [ZCRYPT]: "zcrypt", [OFFLINE]: "offline", [FREE]: "free", [UNBOUND]: "unbound" }[kind];
  context.fillStyle = plain ? colours[plain] : kind === GUEST ? hue : colours.card;
  if (kind !== NONE || size > 8) context.fillRect(...box);
  if (kind === ASSIGNED || kind === FILTERED) {
    context.globalAlpha *= kind === ASSIGNED ? 0.42 : 0.16;
    context.fillStyle = hue;
    context.fillRect(...box);
    context.globalAlpha /= kind === ASSIGNED ? 0.42 : 0.16;
  }
  if (kind === FILTERED) {
    context.save();
    context.beginPath();
    context.rect(...box);
    context.clip();
    context.beginPath();
    const gap = Math.max(size / 3, 3);
    for (let start = x - height; start < x + width; start += gap) {
      context.moveTo(start, y + height);
      context.lineTo(start + height, y);
    }
    context.strokeStyle = hue;
    context.lineWidth = size > 8 ? 1.6 : 1;
    context.stroke();
    context.restore();
  }
  if (size > 5 && [ASSIGNED, FILTERED, ABSENT].includes(kind)) {
    context.strokeStyle = hue;
    context.lineWidth = 1.2;
    if (kind === ABSENT) context.setLineDash([3, 2]);
    context.strokeRect(box[0] + 0.6, box[1] + 0.6, box[2] - 1.2, box[3] - 1.2);
    context.setLineDash([]);
  }
}

function drawSign(context, x, y, size, kind, device) {
  const hue = colours[`device-${device % HUES}`];
  const ink = { [ZCRYPT]: "on-solid", [OFFLINE]: "ink", [FREE]: "free-ink", [UNBOUND]: "unbound-ink", [GUEST]: "on-solid" }[kind];
  const text = KINDS[kind].device ? `${device + 1}` : KINDS[kind].sign;
  context.font = `${kind === GUEST || kind === FILTERED ? 700 : 600} ${Math.min(size * 0.48, 14)}px ${colours.sans}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  if (kind === FILTERED) { // readable in front of the hatching
    context.fillStyle = colours.card;
    context.beginPath();
    context.arc(x + size / 2, y + size / 2, size * 0.3, 0, 7);
    context.fill();
  }
  context.fillStyle = ink ? colours[ink] : kind === ASSIGNED ? colours.ink : hue;
  context.fillText(text, x + size / 2, y + size / 2 + 0.5);
}

class Matrix {
  constructor(host, box, canvas, onPoint) {
    Object.assign(this, { host, box, canvas, zoom: 0, cursor: null, hover: null, highlight: null, named: new Set(), paper: false });
    this.index = this.before = 0;
    this.sizer = canvas.parentElement;
    this.onPoint = onPoint;
    box.addEventListener("scroll", () => this.draw());
    canvas.addEventListener("pointermove", (event) => this.point("hover", this.at(event)));
    canvas.addEventListener("pointerleave", () => this.point("hover", null));
    canvas.addEventListener("pointerdown", (event) => this.point("cursor", this.at(event)));
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.layout()).observe(box);
  }

  get rows() { return this.host.axes.adapters; }
  get columns() { return this.host.axes.domains; }

  layout() {
    const wide = this.paper ? PAPER.width : this.box.clientWidth;
    if (!wide || !this.columns.length) return;
    this.left = 34;
    const fitting = Math.min((wide - this.left) / this.columns.length, 38);
    const size = Math.min(LARGEST, Math.max(SMALLEST, (fitting < WHOLE_FROM ? fitting : Math.floor(fitting)) * 1.5 ** this.zoom));
    this.size = this.paper ? Math.min(fitting, (PAPER.height - 42) / this.rows.length) : size < WHOLE_FROM ? size : Math.round(size);
    this.top = this.size < 36 ? 42 : 24;
    this.sizer.style.width = `${Math.ceil(this.left + this.columns.length * this.size)}px`;
    this.sizer.style.height = `${Math.ceil(this.top + this.rows.length * this.size) + 1}px`;
    this.draw();
  }

  zoomBy(steps) {
    const before = this.size;
    this.zoom += steps;
    this.layout();
    if (this.size === before) this.zoom -= steps;
  }

  at(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    const x = event.clientX - left, y = event.clientY - top;
    if (x < this.left || y < this.top) return null;
    const column = Math.floor((x - this.left + this.box.scrollLeft) / this.size);
    const row = Math.floor((y - this.top + this.box.scrollTop) / this.size);
    return row < this.rows.length && column < this.columns.length ? { row, column } : null;
  }

  point(which, place) {
    this[which] = place;
    this.draw();
    this.onPoint(this.hover ?? this.cursor, this.hover ? "hover" : "cursor");
  }

  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-16, 0], PageDown: [16, 0] };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (moves[event.key] || event.key === "Home" || event.key === "End") {
      event.preventDefault();
      event.stopPropagation();
      const [down, right] = moves[event.key] ?? [0, event.key === "Home" ? -256 : 256];
      const { row, column } = this.cursor ?? { row: -down, column: -right };
      const within = (number, count) => Math.min(Math.max(number, 0), count - 1);
      this.hover = null;
      this.cursor = { row: within(row + down, this.rows.length), column: within(column + right, this.columns.length) };
      this.reveal();
      this.point("cursor", this.cursor);
    } else if (event.key === "Escape") this.point("cursor", null);
    else if (event.key === "+") this.zoomBy(1);
    else if (event.key === "-") this.zoomBy(-1);
  }

  reveal() {
    const { box, size } = this, x = this.cursor.column * size, y = this.cursor.row * size;
    box.scrollLeft = Math.min(Math.max(box.scrollLeft, x + size + this.left - box.clientWidth), x);
    box.scrollTop = Math.min(Math.max(box.scrollTop, y + size + this.top - box.clientHeight), y);
  }

  show(index, before, named) {
    Object.assign(this, { index, before, named });
    this.draw();
  }

  draw() {
    if (!this.size) return;
    const { box, canvas, size, left, top, rows, columns, paper } = this, scale = paper ? PAPER.scale : devicePixelRatio || 1;
    const [whole, high] = [Math.ceil(left + columns.length * size), Math.ceil(top + rows.length * size) + 1];
    const width = paper ? whole : Math.min(box.clientWidth, whole);
    const height = paper ? high : Math.min(parseFloat(getComputedStyle(box).maxHeight) || Infinity, high);
    const [scrollLeft, scrollTop] = paper ? [0, 0] : [box.scrollLeft, box.scrollTop];
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.fillStyle = colours.card;
    context.fillRect(0, 0, width, height);
    const firstRow = Math.floor(scrollTop / size), firstColumn = Math.floor(scrollLeft / size);
    const lastRow = Math.min(rows.length, firstRow + Math.ceil((height - top) / size) + 1);
    const lastColumn = Math.min(columns.length, firstColumn + Math.ceil((width - left) / size) + 1);
    // At whole pixels: cells that touch have no gap.
    const x = (column) => Math.round(left + column * size - scrollLeft), y = (row) => Math.round(top + row * size - scrollTop);
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    this.drawCells(context, { x, y, firstRow, lastRow, firstColumn, lastColumn });
    context.restore();
    this.drawLabels(context, { x, y, firstRow, lastRow, firstColumn, lastColumn, width, height });
  }

  drawCells(context, { x, y, firstRow, lastRow, firstColumn, lastColumn }) {
    const { size, highlight } = this, width = this.columns.length;
    const cells = this.host.cells(this.index), earlier = this.host.cells(this.before);
    const changed = (at) => cells.kind[at] !== earlier.kind[at] || cells.device[at] !== earlier.device[at] || cells.flags[at] !== earlier.flags[at];
    for (let row = firstRow; row < lastRow; row++) {
      for (let column = firstColumn; column < lastColumn; ) {
        const at = row * width + column, kind = cells.kind[at], device = cells.device[at];
        let end = column + 1;
        if (size <= 8) while (end < lastColumn && cells.kind[row * width + end] === kind && cells.device[row * width + end] === device) end++;
        context.globalAlpha = highlight === null || highlight === device ? 1 : 0.22;
        drawCell(context, x(column), y(row), x(end) - x(column), y(row + 1) - y(row), kind, device, size);
        if (size >= SIGNS_FROM && kind !== NONE) drawSign(context, x(column), y(row), size, kind, device);
        column = end;
      }
    }
    context.globalAlpha = 1;
    const around = new Path2D(); // what has changed: a line only where a neighbour has not
    const edge = (alone, x1, y1, x2, y2) => {
      if (!alone) return;
      around.moveTo(x1, y1);
      around.lineTo(x2, y2);
    };
    for (let row = firstRow; row < lastRow; row++) {
      for (let column = firstColumn; column < lastColumn; column++) {
        const at = row * width + column;
        if (cells.flags[at]) this.drawFlag(context, x(column), y(row), cells.flags[at]);
        if (this.index === this.before || !changed(at)) continue;
        const [west, east, north, south] = [x(column) + 1, x(column + 1) - 1, y(row) + 1, y(row + 1) - 1];
        edge(row === 0 || !changed(at - width), west - 1, north, east + 1, north);
        edge(row === this.rows.length - 1 || !changed(at + width), west - 1, south, east + 1, south);
        edge(column === 0 || !changed(at - 1), west, north - 1, west, south + 1);
        edge(column === width - 1 || !changed(at + 1), east, north - 1, east, south + 1);
      }
    }
    context.strokeStyle = colours.changed;
    context.lineWidth = 2;
    context.stroke(around);
    for (const name of this.named) {
      const row = this.rows.indexOf(parseInt(name, 16)), column = this.columns.indexOf(parseInt(name.slice(3), 16));
      if (row >= firstRow && row < lastRow && column >= firstColumn && column < lastColumn) this.drawCross(context, x(column), y(row));
    }
    for (const place of [this.cursor, this.hover]) {
      if (place) this.ring(context, x(place.column), y(place.row), size, size, colours.focus, 2.5);
    }
  }

  ring(context, x, y, width, height, colour, line) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(x + line / 2, y + line / 2, width - line, height - line);
  }

  drawFlag(context, x, y, flags) { // a corner: of what is wrong with the hardware, or of an exception
    context.fillStyle = flags & (DECONFIGURED | CHECKSTOPPED) ? colours.wrong : colours.ink;
    context.beginPath();
    context.moveTo(x + this.size, y);
    context.lineTo(x + this.size * 0.55, y);
    context.lineTo(x + this.size, y + this.size * 0.45);
    context.fill();
  }

  drawCross(context, x, y) { // what a refusal is about
    const { size } = this;
    this.ring(context, x, y, size, size, colours.wrong, size > 8 ? 2.5 : 1.5);
    context.beginPath();
    const [far, near] = size < SIGNS_FROM ? [0.8, 0.2] : [0.32, 0.12]; // in a corner, if there is a sign to be read
    context.moveTo(x + size * near, y + size * near);
    context.lineTo(x + size * far, y + size * far);
    context.moveTo(x + size * far, y + size * near);
    context.lineTo(x + size * near, y + size * far);
    context.stroke();
  }

  drawLabels(context, { x, y, firstRow, lastRow, firstColumn, lastColumn, width, height }) {
    const { size, left, top, rows, columns } = this, state = this.host.state(this.index);
    const kept = [bitsOf(state.masks.apmask), bitsOf(state.masks.aqmask)], place = this.hover ?? this.cursor;
    context.fillStyle = colours.card;
    context.fillRect(0, 0, width, top);
    context.fillRect(0, 0, left, height);
    context.font = `11px ${colours.sans}`;
    context.textBaseline = "middle";
    const every = [1, 2, 4, 8].find((count) => count * size >= 13); // of many numbers those that are round in hex
    for (let row = firstRow; row < lastRow; row++) {
      if (y(row) + size / 2 < top) continue;
      if (kept[0][rows[row]]) this.bar(context, left - 4, y(row), 2, size > 8 ? size - 1 : y(row + 1) - y(row));
      const here = place?.row === row;
      if (!here && (rows[row] % every || (place && Math.abs(place.row - row) < every))) continue;
      context.fillStyle = here ? colours.focus : colours.soft;
      context.textAlign = "right";
      context.fillText(hex(rows[row], 2), left - 8, y(row) + size / 2);
    }
    for (let column = firstColumn; column < lastColumn; column++) {
      if (x(column) + size / 2 < left) continue;
      if (kept[1][columns[column]]) this.bar(context, x(column), top - 4, size > 8 ? size - 1 : x(column + 1) - x(column), 2);
      const here = place?.column === column;
      if (!here && (columns[column] % every || (place && Math.abs(place.column - column) < every))) continue;
      context.fillStyle = here ? colours.focus : colours.soft;
      context.save();
      context.translate(x(column) + size / 2, top - 8);
      if (top > 30) context.rotate(-Math.PI / 2);
      context.textAlign = top > 30 ? "left" : "center";
      context.fillText(hex(columns[column], 4), 0, top > 30 ? 0 : -4);
      context.restore();
    }
  }

  bar(context, x, y, width, height) { // what a mask keeps for the host's own drivers
    context.fillStyle = colours.zcrypt;
    context.fillRect(x, y, width, height);
  }
}
