// Puts the page together: reads the data, renders the parts, and keeps the gallery in the order that is asked for.
"use strict";

const data = JSON.parse(document.getElementById("report-data").textContent);
const byId = (id) => document.getElementById(id);
const state = { layer: "score" };
const cards = data.gallery.map((item) => new Card(item, data));

renderHeader(data);
renderSummary(data);
renderCharts(data);
renderNotes(data);
renderControls();
arrange();

// A card is filled when it comes near the screen, so that long galleries stay light.
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.target.card.isNear = entry.isIntersecting;
  openNear();
}, { rootMargin: "800px 0px" });
for (const card of cards) {
  card.element.card = card;
  watcher.observe(card.element);
}

function openNear() {
  for (const card of cards) if (card.isNear) card.open(state.layer);
}

function renderControls() {
  const { images, gallery, models } = data;
  byId("images-intro").textContent = gallery.length < images.count
    ? `${gallery.length} of the ${images.count.toLocaleString("en")} images, drawn with seed ${images.seed}; the numbers above are over all of them. Point at a patch for its numbers, or tap it; the same place is framed for every model.`
    : "Point at a patch for its numbers, or tap it; the same place is framed for every model.";
  byId("gallery").style.setProperty("--columns", Math.min(models.length, 4));
  for (const { key, label } of LAYERS) {
    const radio = make("input", { type: "radio", name: "layer", value: key });
    radio.checked = key === state.layer;
    radio.addEventListener("change", () => {
      state.layer = key;
      renderLegend();
      openNear();
    });
    byId("layers").append(make("label", {}, radio, make("span", {}, label)));
  }
  for (const [id, options] of [["sort", orders()], ["filter", filters()]]) {
    byId(id).append(...options.map(({ label }, i) => make("option", { value: i }, label)));
    byId(id).addEventListener("change", arrange);
  }
  byId("strength").addEventListener("input", (event) => {
    document.documentElement.style.setProperty("--strength", event.target.value / 100);
  });
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

/** Put the cards into the chosen order; equal ones stay in the order of their names, in which they come. */
function arrange() {
  const { by } = orders()[Number(byId("sort").value)], { keep } = filters()[Number(byId("filter").value)];
  const kept = cards.filter((card) => keep(card.item));
  const ranked = kept.map((card, i) => [by(card.item), i, card]).sort(([a, i], [b, j]) => (a === b ? i - j : a - b));
  byId("gallery").replaceChildren(...ranked.map(([, , card]) => card.element));
  byId("count").textContent = kept.length === cards.length
    ? count(kept.length, "image", "images")
    : `${kept.length} of ${count(cards.length, "image", "images")}`;
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
  const texts = {
    rgb: "red, green, blue: first three principal components of a map",
    image: "The crop that the model sees.",
  };
  byId("legend").replaceChildren(
    scale ? make("span", { class: "key" }, scale[0], rampStrip(data.colormap), scale[1]) : make("span", {}, texts[state.layer]),
    ...[true, false, null].filter((hit) => has((view) => view.hit === hit)).map(sign),
    has((view) => view.box) ? make("span", {}, "frame: a single object\u2019s box") : "",
    has((view) => !view.box && view.object) ? make("span", {}, "steps: object patches") : "");
  byId("strength-label").hidden = state.layer === "image";
}
