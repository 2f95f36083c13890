// The upper half of a report: what was compared, the table of numbers, the charts, and the notes.
"use strict";

const FEW = 100; // a number from fewer images is greyed

/** One row of the table: its number, what it means, over how many images, and what to read it against (name, value). */
const ROWS = [
  {
    label: "Point-in-Box", unit: "%", range: [0, 100],
    why: "the best patch\u2019s centre lies in the object\u2019s box; images with exactly one object; Wilson\u2019s 95 % interval",
    value: (m) => m.point_in_box?.point_in_box,
    tick: ["random patch", (m) => m.point_in_box.point_in_box_random],
    wedge: ["image centre", (m) => m.point_in_box.point_in_box_center],
    also: (m) => `attainable ${fixed(m.point_in_box.point_in_box_max, 1)}`,
    size: (m) => m.point_in_box.num_images, interval: wilson,
  },
  {
    label: "AUROC of the score", unit: "%", range: [0, 100],
    why: "object patches against background patches",
    value: (m) => m.score_distribution?.auroc,
    tick: ["chance", () => 50],
    size: (m) => m.score_distribution.num_images,
  },
  {
    label: "Background in the top 10 %", unit: "%", range: [0, 100],
    why: "share of background among each image\u2019s patches of highest score; lower is better",
    value: (m) => m.score_distribution?.background_top_10,
    tick: ["of all patches", (m) => m.score_distribution.background_share],
    size: (m) => m.score_distribution.num_images,
  },
  {
    label: "Votes on the object", unit: "%", range: [0, 100],
    why: "share of LaSt\u2019s votes that fall on object patches",
    value: (m) => m.vote_statistics.votes_inside,
    tick: ["uniform voting", (m) => m.vote_statistics.votes_inside_uniform],
    also: (m) => `lift ${fixed(m.vote_statistics.votes_lift, 2)}`,
    size: (m) => m.vote_statistics.num_object_images,
  },
  {
    label: "High norm", unit: "% outliers", head: (m) => (m.patch_norms.high_norm ? "yes" : "no"),
    why: "patches whose norm, before the final norm, lies at or above the cut-off; yes from 0.5 %",
    value: (m) => m.patch_norms.outlier_share,
    also: (m) => [`cut-off ${fixed(m.patch_norms.cutoff, 1)}`, `median ${fixed(m.patch_norms.norm_median, 1)}`],
    size: (m) => m.patch_norms.num_images,
  },
  {
    label: "Norm against score", unit: "", range: [-1, 1], decimals: 2,
    why: "Pearson correlation inside an image, mean over images",
    value: (m) => m.patch_norms.correlation,
    tick: ["none", () => 0],
    size: (m) => m.patch_norms.num_images,
  },
];

/** The 95 % interval of a share of images, in percent (Wilson, 1927). */
function wilson(percent, images) {
  const p = percent / 100, z2 = 1.959964 ** 2 / images;
  const half = Math.sqrt(z2 * (p * (1 - p) + z2 / 4));
  return [-half, half].map((side) => (100 * (p + z2 / 2 + side)) / (1 + z2));
}

function renderHeader(data) {
  const { images } = data;
  const title = make("h1");
  data.models.forEach((model, i) => title.append(...(i ? [make("span", { class: "versus" }, " / ")] : []), model.name));
  title.append(make("span", { class: "versus" }, " on "), images.name);
  const objects = { boxes: "objects from boxes", masks: "objects from masks" }[images.annotation] || "nothing known about objects";
  const numSkipped = Object.values(images.skipped).reduce((a, b) => a + b, 0);
  const skipped = numSkipped ? `; ${numSkipped.toLocaleString("en")} files left out, see the notes` : "";
  document.getElementById("header").append(
    make("p", { class: "overline" }, "LaSt-ViT diagnostics"), title,
    make("p", { class: "lead" }, `${count(images.count, "image", "images")}, ${objects}${skipped}. ${data.date}.`),
    make("div", { class: "models" }, data.models.map(modelCard)));
}

function modelCard(model) {
  const facts = [
    ["Model", model.spec], ["Weights", model.weights], ["Pooling", model.pooling], ["Input", model.input],
    ["Patches", model.patches], ["Votes", model.votes],
  ];
  return coloured(make("div", { class: "model" }, make("h3", {}, model.name),
    make("dl", {}, facts.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]))), model);
}

function renderSummary(data) {
  const table = document.getElementById("summary-table");
  table.style.setProperty("--num-models", data.models.length);
  table.append(make("div", { class: "row head", role: "row" }, make("span", { class: "label", role: "columnheader" }),
    data.models.map((model) => make("span", { role: "columnheader" }, nameOf(model)))));
  const isKnown = (row) => data.models.some((model) => row.value(model.metrics) !== undefined);
  for (const row of ROWS.filter(isKnown)) {
    table.append(make("div", { class: "row", role: "row" },
      make("div", { class: "label", role: "rowheader" }, make("span", { class: "what" }, row.label), make("span", { class: "why small" }, row.why)),
      data.models.map((model) => coloured(make("div", { role: "cell", "data-row": row.label }, summaryCell(row, model.metrics)), model))));
  }
  const missing = ROWS.filter((row) => !isKnown(row)).map((row) => row.label);
  if (missing.length) {
    const note = document.getElementById("summary-missing");
    note.hidden = false;
    note.textContent = `Left out, because the images do not tell: ${missing.join(", ")}. Boxes or masks of the objects (--boxes, --masks) bring them.`;
  }
}

function summaryCell(row, metrics) {
  const value = row.value(metrics);
  if (value === undefined) return make("span", { class: "none" }, "not defined here");
  const tick = row.tick?.[1](metrics), wedge = row.wedge?.[1](metrics), size = row.size(metrics);
  const decimals = row.decimals ?? 1, text = fixed(value, decimals), interval = row.interval?.(value, size);
  const small = [count(size, "image", "images")];
  if (interval) small.push(`interval ${interval.map((side) => fixed(side, decimals)).join(" to ")}`);
  if (row.tick) small.push([glyph("tick"), `${row.tick[0]} ${fixed(tick, decimals)}`]);
  if (row.wedge) small.push([glyph("wedge"), `${row.wedge[0]} ${fixed(wedge, decimals)}`]);
  if (row.also) small.push(...[row.also(metrics)].flat());
  return [
    make("div", { class: size < FEW ? "value few" : "value" }, row.head ? row.head(metrics) : text,
      row.head || row.unit ? make("span", { class: "unit" }, row.head ? `\u2002${text} ${row.unit}` : `\u2009${row.unit}`) : null),
    row.range ? scaleLine(value, ...row.range, interval, tick, wedge) : null,
    make("div", { class: "baselines small" }, small.map((text) => make("span", {}, text))),
  ];
}

function renderCharts(data) {
  const place = document.getElementById("charts"), { models } = data;
  place.style.setProperty("--num-models", models.length);
  const key = (kind, text) => make("span", { class: "key" }, make("i", { class: kind }), text);
  const scored = models.filter((model) => model.charts.score);
  if (scored.length) {
    const highest = Math.max(...scored.flatMap(({ charts: { score } }) => [...score.foreground, ...score.background]));
    place.append(chartGroup("Patch scores",
      "On object and on background patches. Where object lies further right, the score finds it.",
      [key("object", "object patches"), key("background", "background patches")], scored, (model) => scoreChart(model, highest)));
  }
  const norms = models.flatMap(({ charts: { norm } }) => norm.edges), range = [Math.min(...norms), Math.max(...norms)];
  place.append(chartGroup("Patch norms",
    "At the output, before the final norm. A hill of its own at the right would be the high-norm artefact.",
    ["full colour: at or above the cut-off"], models, (model) => normChart(model, ...range)));
  const lifts = models.map(({ charts: { frequency } }) => Math.max(...frequency.flat()) * frequency.length * frequency[0].length / 100);
  const highest = Math.max(...lifts);
  place.append(chartGroup("Votes by position",
    "Each position\u2019s share of all votes; 1 is a position neither preferred nor avoided.",
    [make("span", { class: "key" }, "0", rampStrip(data.colormap), `${fixed(highest, 2)} times uniform`)], models,
    (model) => make("div", { class: "beside" }, frequencyChart(model, data.colormap, highest), frequencyFacts(model)), "grid"));
}

/** The range of a map of positions. */
function frequencyFacts({ charts: { frequency } }) {
  const lifts = frequency.flat().map((percent, _, { length }) => (percent * length) / 100);
  return make("div", { class: "small" }, make("span", {}, `lowest ${fixed(Math.min(...lifts), 2)}`),
    make("span", {}, `highest ${fixed(Math.max(...lifts), 2)}`));
}

function chartGroup(title, text, keys, models, chart, kind = "") {
  return make("div", { class: "group" }, make("h2", {}, title), make("p", { class: "lead" }, text), make("div", { class: "keys" }, keys),
    make("div", { class: "panels" }, models.map((model) => coloured(make("div", { class: `panel ${kind}` }, nameOf(model), chart(model)), model))));
}
