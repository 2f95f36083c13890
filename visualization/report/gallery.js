// The gallery: one card per image, models side by side, every patch to be asked for its numbers.
"use strict";

const LAYERS = [
  { key: "score", label: "Score" }, { key: "votes", label: "Votes" }, { key: "norm", label: "Norm" },
  { key: "rgb", label: "PCA" },
];

/** Numbers from base64, in the byte order of every machine that shows the page. */
function unpack(text, Type) {
  return new Type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

/** How a stored number of a layer is shown. */
const SHOWN = {
  score: (value) => fixed(value / 1000, 3),
  votes: (value) => String(value),
  norm: (value) => fixed(value, 3),
};

/** A card; empty until `open` is called, which the page does when it is to be seen. */
class Card {
  constructor(item, data) {
    this.item = item;
    this.data = data;
    this.pinned = false;
    this.isOpen = false;
    this.layer = null;
    this.element = make("article", { class: "card", "data-name": item.name });
  }

  open(layer) {
    if (!this.isOpen) {
      this.isOpen = true;
      this.views = this.item.views.map((view, i) => new View(this, view, this.data.models[i]));
      this.readout = this.makeReadout();
      const { disagreement } = this.item;
      this.element.append(
        make("div", { class: "card-head" }, make("span", { class: "file", title: this.item.name }, this.item.name),
          disagreement === null ? null : make("span", { class: "hint" }, `disagreement ${fixed(disagreement, 2)}`)),
        make("div", { class: "views" }, this.views.flatMap((view) => [view.photograph, view.element])), this.readout);
      this.rest();
    }
    if (this.layer !== layer) {
      this.layer = layer;
      for (const view of this.views) view.show(layer);
    }
  }

  makeReadout() {
    this.caption = make("th", { scope: "col" });
    this.cells = this.views.map(() => ["score", "votes", "norm", "place"].map((kind) => make("td", { class: kind })));
    return make("table", { class: "readout", "aria-live": "polite" },
      make("thead", {}, make("tr", {}, this.caption, ["score", "votes", "norm", "row, col"].map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, this.cells.map((cells, i) => {
        const { model } = this.views[i];
        return make("tr", {}, make("th", { scope: "row", title: model.name }, coloured(make("i", { class: "swatch" }), model), model.name), cells);
      })));
  }

  /** Nothing is pointed at: each model's own best patch. */
  rest() {
    this.pinned = false;
    this.caption.textContent = "best patch";
    this.views.forEach((view, i) => {
      view.point(null);
      this.write(i, view.view.best);
    });
  }

  /** A patch of one view is pointed at: the patches of the other views at the same place of the image. */
  point(from, patch, caption) {
    const place = from.placeOf(patch);
    this.caption.textContent = caption;
    this.views.forEach((view, i) => {
      const same = view === from ? patch : view.patchAt(place);
      view.point(same);
      this.write(i, same);
    });
  }

  write(row, patch) {
    const view = this.views[row];
    const texts = patch === null ? ["\u2013", "\u2013", "\u2013", "not seen"] : view.numbers(patch);
    this.cells[row].forEach((cell, i) => { cell.textContent = texts[i]; });
  }
}

/** One model's map of one image, and the photograph as it is cropped, unless an earlier model's is the same. */
class View {
  constructor(card, view, model) {
    this.card = card;
    this.view = view;
    this.model = model;
    [this.height, this.width] = model.grid;
    this.maps = { score: unpack(view.score, Int16Array), votes: unpack(view.votes, Uint16Array), norm: unpack(view.norm, Float32Array) };
    this.maps.rgb = view.rgb && unpack(view.rgb, Uint8Array);
    this.current = null;
    this.cursors = [];
    this.canvas = make("canvas", { width: this.width, height: this.height });
    this.facts = make("div", { class: "facts" });
    this.stage = make("div", { class: "frame stage", tabindex: 0, role: "application", "aria-roledescription": "patch map",
      "aria-label": `${model.name}: arrow keys move over the patches, Enter pins one, Escape lets go` },
      this.canvas, this.marks(bestMark(view.hit, ...this.center(view.best).map((share) => 100 * share), 3.4)));
    this.element = make("figure", { class: "view" }, this.stage, make("figcaption", {}, nameOf(model), this.facts));
    const isNew = card.item.views.find(({ thumbnail }) => thumbnail === view.thumbnail) === view;
    this.photograph = isNew ? make("figure", { class: "view" },
      make("div", { class: "frame" }, make("img", { src: card.item.thumbnails[view.thumbnail], alt: "" }), this.marks()),
      make("figcaption", {}, "photograph")) : null;
    this.listen();
  }

  /** Box or object patches, a mark, and room for the frame of the patch that is pointed at. */
  marks(mark = null) {
    const svg = draw("svg", { class: "marks", viewBox: "0 0 100 100", "aria-hidden": "true" });
    const outline = this.view.box ? this.boxPath() : this.view.object ? this.objectPath() : "";
    if (outline) svg.append(draw("path", { class: "rim", d: outline }), draw("path", { class: "outline", d: outline }));
    this.cursors.push(draw("g"));
    svg.append(mark ?? "", this.cursors.at(-1));
    return svg;
  }

  boxPath() {
    const [x1, y1, x2, y2] = this.view.box.map((share) => 100 * share);
    return `M${x1} ${y1}H${x2}V${y2}H${x1}Z`;
  }

  /** The border between object patches and the rest. */
  objectPath() {
    const isObject = unpack(this.view.object, Uint8Array), { width, height } = this;
    const at = (row, column) => row >= 0 && column >= 0 && row < height && column < width && isObject[row * width + column] === 1;
    const dx = 100 / width, dy = 100 / height;
    let path = "";
    for (let row = 0; row <= height; row++) {
      for (let column = 0; column <= width; column++) {
        if (at(row, column) !== at(row - 1, column)) path += `M${column * dx} ${row * dy}h${dx}`;
        if (at(row, column) !== at(row, column - 1)) path += `M${column * dx} ${row * dy}v${dy}`;
      }
    }
    return path;
  }

  /** Draw a layer, and say its range and what the model makes of the image. */
  show(layer) {
    const isMap = this.maps[layer] !== null;
    this.canvas.hidden = !isMap;
    if (isMap) this.paint(layer);
    const { hit, auroc } = this.view;
    const result = [hit === null ? null : hit ? "hit" : "miss", auroc === null ? null : `AUROC ${fixed(auroc, 1)}`];
    const range = layer === "rgb" ? (isMap ? "3 components" : "no PCA: under 3 patches") : this.range(layer);
    this.facts.replaceChildren(make("span", { class: "range" }, range), make("span", {}, result.filter(Boolean).join(" \u00b7 ")));
  }

  range(layer) {
    const [low, high] = this.limits(layer);
    return `${SHOWN[layer](low, this.model)} \u2013 ${SHOWN[layer](high, this.model)}`;
  }

  /** Lowest and highest value of the colour scale; votes begin at 0. */
  limits(layer) {
    const values = this.maps[layer];
    return [layer === "votes" ? 0 : values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  }

  paint(layer) {
    const context = this.canvas.getContext("2d"), pixels = context.createImageData(this.width, this.height);
    const values = this.maps[layer];
    const [low, high] = layer === "rgb" ? [0, 1] : this.limits(layer);
    for (let i = 0; i < this.width * this.height; i++) {
      const color = layer === "rgb" ? values.subarray(3 * i, 3 * i + 3) : rampColor(this.card.data.colormap, (values[i] - low) / (high - low || 1));
      pixels.data.set([...color, 255], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
  }

  /** Score, votes, norm and place of a patch, as shown. */
  numbers(patch) {
    const row = Math.floor(patch / this.width), column = patch % this.width;
    return [...["score", "votes", "norm"].map((layer) => SHOWN[layer](this.maps[layer][patch])), `${row + 1}, ${column + 1}`];
  }

  /** Centre of a patch in shares of the crop. */
  center(patch) {
    return [((patch % this.width) + 0.5) / this.width, (Math.floor(patch / this.width) + 0.5) / this.height];
  }

  /** Centre of a patch in shares of the original image: models may see different crops of it. */
  placeOf(patch) {
    const [x1, y1, x2, y2] = this.view.frame, [x, y] = this.center(patch);
    return [x1 + x * (x2 - x1), y1 + y * (y2 - y1)];
  }

  /** The patch at a place of the original image; null outside the crop. */
  patchAt([x, y]) {
    const [x1, y1, x2, y2] = this.view.frame;
    return this.patchOn((x - x1) / (x2 - x1), (y - y1) / (y2 - y1));
  }

  /** The patch at a place of the crop. On a border, where rounding would decide, it is the right or lower one. */
  patchOn(x, y) {
    const column = Math.floor(x * this.width + 1e-4), row = Math.floor(y * this.height + 1e-4);
    return column >= 0 && row >= 0 && column < this.width && row < this.height ? row * this.width + column : null;
  }

  /** Frame a patch; null frames none. */
  point(patch) {
    this.current = patch;
    for (const cursor of this.cursors) cursor.replaceChildren();
    if (patch === null) return;
    const width = 100 / this.width, height = 100 / this.height;
    const place = { x: (patch % this.width) * width, y: Math.floor(patch / this.width) * height, width, height };
    for (const cursor of this.cursors) cursor.append(...["cursor-rim", "cursor"].map((kind) => draw("rect", { class: kind, ...place })));
  }

  listen() {
    const { card, stage } = this;
    const under = (event) => {
      const box = stage.getBoundingClientRect();
      return this.patchOn((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    stage.addEventListener("pointermove", (event) => {
      const patch = under(event);
      if (event.pointerType !== "touch" && !card.pinned && patch !== null) card.point(this, patch, "this patch");
    });
    stage.addEventListener("pointerleave", () => { if (!card.pinned) card.rest(); });
    stage.addEventListener("click", (event) => {
      const patch = under(event);
      if (patch !== null) this.pin(patch);
    });
    stage.addEventListener("keydown", (event) => this.key(event));
    stage.addEventListener("blur", () => { if (!card.pinned) card.rest(); });
  }

  /** Hold a patch; asked for the held patch again, let go. */
  pin(patch) {
    if (this.card.pinned && this.current === patch) {
      this.card.rest();
    } else {
      this.card.pinned = true;
      this.card.point(this, patch, "pinned");
    }
  }

  key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const patch = this.current ?? this.view.best;
    if (step) {
      const row = Math.floor(patch / this.width) + step[0], column = (patch % this.width) + step[1];
      this.card.pinned = false;
      if (row >= 0 && column >= 0 && row < this.height && column < this.width) this.card.point(this, row * this.width + column, "this patch");
    } else if (event.key === "Enter" || event.key === " ") {
      this.pin(patch);
    } else if (event.key === "Escape") {
      this.card.rest();
    } else {
      return;
    }
    event.preventDefault();
  }
}

/** The best patch, also for the legend: a disc for a hit, a diamond for a miss, a square where no box tells. */
function bestMark(hit, x, y, size) {
  if (hit === true) return draw("circle", { class: "best hit", cx: x, cy: y, r: size });
  const reach = hit === false ? 1.3 * size : 0.85 * size;
  const path = hit === false
    ? `M${x} ${y - reach}L${x + reach} ${y}L${x} ${y + reach}L${x - reach} ${y}Z`
    : `M${x - reach} ${y - reach}h${2 * reach}v${2 * reach}h${-2 * reach}Z`;
  return draw("path", { class: hit === false ? "best miss" : "best unknown", d: path });
}
