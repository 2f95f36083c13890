// Puts the page together: reads the data, renders the parts, and keeps the gallery in the order that is asked for.
"use strict";

const data = JSON.parse(document.getElementById("report-data").textContent);
const byId = (id) => document.getElementById(id);
const CARDS = 6; // images per page of the gallery
const state = { layer: "score", first: 0, ranked: [] };
const cards = data.gallery.map((item) => new Card(item, data));

renderHeader(data);
renderSummary(data);
renderCharts(data);
renderControls();
arrange();

function renderControls() {
  const { images, gallery, models } = data;
  byId("images-intro").textContent = gallery.length < images.count
    ? `${gallery.length} of the ${images.count.toLocaleString("en")} images, drawn with seed ${images.seed}; the numbers above are over all of them. Point at a patch for its numbers, or tap it; the same place is framed for every model.`
    : "Point at a patch for its numbers, or tap it; the same place is framed for every model.";
  const photographs = Math.max(...gallery.map(({ thumbnails }) => thumbnails.length));
  byId("gallery").style.setProperty("--columns", Math.min(models.length + photographs, 6));
  for (const { key, label } of LAYERS) {
    const radio = make("input", { type: "radio", name: "layer", value: key });
    radio.checked = key === state.layer;
    radio.addEventListener("change", () => {
      state.layer = key;
      renderLegend();
      turnTo(state.first);
    });
    byId("layers").append(make("label", {}, radio, make("span", {}, label)));
  }
  for (const [id, options] of [["sort", orders()], ["filter", filters()]]) {
    byId(id).append(...options.map(({ label }, i) => make("option", { value: i }, label)));
    byId(id).addEventListener("change", arrange);
  }
  byId("previous").addEventListener("click", () => turnTo(state.first - CARDS));
  byId("next").addEventListener("click", () => turnTo(state.first + CARDS));
  renderLegend();
}

/** The orders that the data allow; what has no value stands last. */
function orders() {
  const { models, gallery } = data;
  const found = [{ label: "file name", by: () => 0 }];
  if (gallery.some((item) => item.disagreement !== null)) {
    found.push({ label: "models disagree most", by: (item) => (item.disagreement === null ? Infinity : -item.disagreement) });
  }
  models.forEach((model, i) => {
    const views = gallery.map((item) => item.views[i]);
    if (views.some((view) => view.hit !== null)) {
      found.push({ label: `misses of ${model.name} first`, by: ({ views: { [i]: { hit } } }) => (hit === null ? 2 : Number(hit)) });
    }
    if (views.some((view) => view.auroc !== null)) {
      found.push({ label: `lowest AUROC of ${model.name}`, by: ({ views: { [i]: { auroc } } }) => auroc ?? Infinity });
    }
  });
  return found;
}

function filters() {
  const { models, gallery } = data;
  const found = [{ label: "all images", keep: () => true }];
  if (!gallery.some((item) => item.views.some((view) => view.hit !== null))) return found;
  models.forEach((model, i) => found.push(
    { label: `hits of ${model.name}`, keep: (item) => item.views[i].hit === true },
    { label: `misses of ${model.name}`, keep: (item) => item.views[i].hit === false }));
  if (models.length > 1) {
    found.push({ label: "hit by some, missed by others", keep: (item) => new Set(item.views.map((view) => view.hit)).size > 1 });
  }
  return found;
}

/** Put the cards into the chosen order, equal ones in that of their names, in which they come; show the first page. */
function arrange() {
  const { by } = orders()[Number(byId("sort").value)], { keep } = filters()[Number(byId("filter").value)];
  const kept = cards.filter((card) => keep(card.item));
  const ranked = kept.map((card, i) => [by(card.item), i, card]).sort(([a, i], [b, j]) => (a === b ? i - j : a - b));
  state.ranked = ranked.map(([, , card]) => card);
  turnTo(0);
}

/** Show the page of the gallery that begins with this card. */
function turnTo(first) {
  state.first = first;
  const { ranked } = state, last = Math.min(first + CARDS, ranked.length), shown = ranked.slice(first, last);
  for (const card of shown) card.open(state.layer);
  byId("gallery").replaceChildren(...shown.map((card) => card.element));
  const all = ranked.length === cards.length ? "" : ` (${cards.length} in all)`;
  byId("count").textContent = `${shown.length ? `${first + 1}\u2013${last} of ` : ""}${count(ranked.length, "image", "images")}${all}`;
  byId("previous").disabled = first === 0;
  byId("next").disabled = last === ranked.length;
}

function renderLegend() {
  const views = data.gallery.flatMap((item) => item.views);
  const has = (test) => views.some(test);
  const sign = (hit) => make("span", { class: "key" }, draw("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, bestMark(hit, 7, 7, 4)),
    { true: "best patch hits", false: "best patch misses", null: "best patch" }[hit]);
  const scales = {
    score: ["lowest", "highest score of a map"], votes: ["0", "most votes of a map"],
    norm: ["lowest", "highest norm of a map"],
  };
  const scale = scales[state.layer];
  byId("legend").replaceChildren(
    scale ? make("span", { class: "key" }, scale[0], rampStrip(data.colormap), scale[1])
      : make("span", {}, "red, green, blue: first three principal components of a map"),
    ...[true, false, null].filter((hit) => has((view) => view.hit === hit)).map(sign),
    has((view) => view.box) ? make("span", {}, "frame: a single object\u2019s box") : "",
    has((view) => !view.box && view.object) ? make("span", {}, "steps: object patches") : "");
}
