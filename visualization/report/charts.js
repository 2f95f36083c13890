// Drawing: elements, number formats, the colour map, and the charts as inline SVG.
// Text always enters the page as text nodes, never as markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children (elements or texts; null is skipped). */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Give an element a model's colour: --model to its style sheet, and --tone, which suits the ground. */
function coloured(element, model) {
  element.classList.add("toned");
  element.style.setProperty("--model", model.color);
  return element;
}

function nameOf(model) {
  return coloured(make("span", { class: "name" }, make("i", { class: "swatch" }), model.name), model);
}

/** A number with so many decimals, with a real minus sign. */
function fixed(value, decimals) {
  return value.toFixed(Math.max(0, decimals)).replace("-", "\u2212");
}

/** A number with three digits that count, for axes and cut-offs. */
function short(value) {
  return value === 0 ? "0" : String(Number(value.toPrecision(3))).replace("-", "\u2212");
}

const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** [red, green, blue] of a level in [0, 1]; the map is 256 hexadecimal colours in one text. */
function rampColor(ramp, level) {
  const start = 6 * Math.round(255 * Math.min(1, Math.max(0, level)));
  return [0, 2, 4].map((offset) => parseInt(ramp.slice(start + offset, start + offset + 2), 16));
}

/** A strip of the colour map, for legends. */
function rampStrip(ramp) {
  const canvas = make("canvas", { class: "ramp", width: 128, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 128; x++) {
    context.fillStyle = `rgb(${rampColor(ramp, x / 127).join(",")})`;
    context.fillRect(x, 0, 1, 1);
  }
  return canvas;
}

/** A value on a line from `low` to `high`, its interval, and above it the baselines: a tick (chance), a wedge (centre). */
function scaleLine(value, low, high, interval, tick, wedge) {
  const at = (number) => 4 + (232 * (number - low)) / (high - low);
  return draw("svg", { class: "scale", viewBox: "0 0 240 16", "aria-hidden": "true" },
    draw("line", { class: "track", x1: at(low), x2: at(high), y1: 8, y2: 8 }),
    interval && draw("line", { class: "interval", x1: at(interval[0]), x2: at(interval[1]), y1: 8, y2: 8 }),
    draw("circle", { class: "dot", cx: at(value), cy: 8, r: 6 }),
    tick === undefined ? null : draw("line", { class: "tick", x1: at(tick), x2: at(tick), y1: 1, y2: 15 }),
    wedge === undefined ? null : draw("path", { class: "wedge", d: wedgePath(at(wedge), 0) }));
}

const wedgePath = (x, y) => `M${x - 4} ${y}h8l-4 6z`;

/** The sign of a baseline, as it stands on the line. */
function glyph(kind) {
  const sign = kind === "tick"
    ? draw("line", { class: "tick", x1: 4, x2: 4, y1: 0, y2: 10 })
    : draw("path", { class: "wedge", d: wedgePath(4, 2) });
  return draw("svg", { class: "glyph", viewBox: "0 0 8 10", "aria-hidden": "true" }, sign);
}

// The charts share one frame: 400 wide, room for tick labels below and at the left.
const FRAME = { width: 400, height: 190, left: 34, right: 8, top: 10, bottom: 34 };

function chartFrame(label, xLabel, yLabel) {
  const { width, height, left, right, top, bottom } = FRAME;
  return draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    draw("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    draw("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, xLabel),
    draw("text", { x: 0, y: top + 1, "text-anchor": "start" }, yLabel));
}

function yAxis(chart, highest, y) {
  const step = niceStep(highest / 4), decimals = Math.ceil(-Math.log10(step) - 1e-9);
  for (let value = 0; value <= highest * 1.001; value += step) {
    chart.append(
      draw("line", { class: "axis", x1: FRAME.left, x2: FRAME.width - FRAME.right, y1: y(value), y2: y(value) }),
      draw("text", { x: FRAME.left - 7, y: y(value) + 3.5, "text-anchor": "end" }, fixed(value, decimals)));
  }
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

function xTick(chart, x, text) {
  const base = FRAME.height - FRAME.bottom;
  chart.append(
    draw("line", { class: "axis", x1: x, x2: x, y1: base, y2: base + 4 }),
    draw("text", { x, y: base + 16, "text-anchor": "middle" }, text));
}

/** Densities of the score on object and on background patches; `highest` is common to all models. */
function scoreChart(model, highest) {
  const { edges, foreground, background } = model.charts.score;
  const chart = chartFrame(`Patch-score distribution of ${model.name}`, "patch score, min-max normalised per image", "density");
  const low = edges[0], span = edges[edges.length - 1] - low;
  const x = (value) => FRAME.left + ((value - low) / span) * (FRAME.width - FRAME.left - FRAME.right);
  const y = (value) => FRAME.height - FRAME.bottom - (value / highest) * (FRAME.height - FRAME.bottom - FRAME.top - 12);
  yAxis(chart, highest, y);
  for (const value of [0, 0.25, 0.5, 0.75, 1]) xTick(chart, x(low + value * span), fixed(low + value * span, 2));
  for (const [kind, line] of Object.entries({ background, object: foreground })) {
    const points = line.map((value, i) => `${x((edges[i] + edges[i + 1]) / 2).toFixed(1)} ${y(value).toFixed(1)}`);
    const first = x((edges[0] + edges[1]) / 2), last = x((edges[line.length - 1] + edges[line.length]) / 2);
    chart.append(
      draw("path", { class: `area ${kind}`, d: `M${first} ${y(0)}L${points.join("L")}L${last} ${y(0)}Z` }),
      draw("path", { class: `curve ${kind}`, d: `M${points.join("L")}` }));
  }
  return chart;
}

/** Norms as bars over a log axis, common to all models; bars at or above the cut-off stand out. */
function normChart(model, lowest, largest) {
  const { edges, percent } = model.charts.norm, { cutoff } = model.metrics.patch_norms;
  const chart = chartFrame(`Norm histogram of ${model.name}`, "norm of the patch token, log scale", "% of patches");
  const low = Math.log(lowest), span = Math.log(largest) - low;
  const x = (value) => FRAME.left + ((Math.log(value) - low) / span) * (FRAME.width - FRAME.left - FRAME.right);
  const highest = Math.max(...percent);
  const base = FRAME.height - FRAME.bottom;
  const y = (value) => base - (value / highest) * (base - FRAME.top - 12);
  yAxis(chart, highest, y);
  for (const value of logTicks(lowest, largest)) xTick(chart, x(value), short(value));
  percent.forEach((value, i) => {
    if (value === 0) return;
    const height = Math.max(base - y(value), 1.5); // a few outliers must not vanish
    const kind = edges[i] >= cutoff * 0.99999 ? "bar high" : "bar";
    const left = x(edges[i]);
    chart.append(draw("rect", { class: kind, x: left, y: base - height, width: Math.max(0.9 * (x(edges[i + 1]) - left), 0.6), height }));
  });
  const cut = x(cutoff), atRight = cut > FRAME.width * 0.7;
  chart.append(
    draw("line", { class: "cut", x1: cut, x2: cut, y1: FRAME.top + 4, y2: base }),
    draw("text", { class: "cut-label", x: cut + (atRight ? -5 : 5), y: FRAME.top + 12, "text-anchor": atRight ? "end" : "start" },
      `cut-off ${short(cutoff)}`));
  return chart;
}

/** Values of the form 1, 2, 5 times a power of ten; finer where those are too few. */
function logTicks(low, high) {
  const within = (factors) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      found.push(...factors.map((factor) => factor * 10 ** power).filter((value) => value >= low && value <= high));
    }
    return found;
  };
  const choices = [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.3, 2.6, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5]];
  return choices.map(within).find((ticks) => ticks.length >= 3) || within(choices[3]);
}

/** Votes by position, in units of uniform voting; `highest` is common to all models. */
function frequencyChart(model, ramp, highest) {
  const rows = model.charts.frequency, cells = rows.length * rows[0].length;
  const chart = draw("svg", { viewBox: `0 0 ${rows[0].length} ${rows.length}`, preserveAspectRatio: "none", role: "img", "shape-rendering": "crispEdges",
    "aria-label": `Votes by position of ${model.name}` });
  rows.forEach((line, row) => line.forEach((percent, column) => {
    const lift = (percent * cells) / 100;
    chart.append(draw("rect", { x: column, y: row, width: 1, height: 1, fill: `rgb(${rampColor(ramp, lift / highest).join(",")})` },
      draw("title", {}, `row ${row + 1}, column ${column + 1}: ${lift.toFixed(2)} times uniform`)));
  }));
  return chart;
}
