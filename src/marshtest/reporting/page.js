// The page's controls set the same signals in every chart of their section, and hide lines of its tables.
"use strict";

const root = document.documentElement;
const button = document.getElementById("theme");

function paint(dark) {
  root.dataset.theme = dark ? "dark" : "light";
  button.textContent = dark ? "Light" : "Dark";
  button.setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
}

const asked = window.matchMedia("(prefers-color-scheme: dark)");
paint(asked.matches);
asked.addEventListener("change", (event) => paint(event.matches));
button.addEventListener("click", () => paint(root.dataset.theme === "light"));

// Printed pages show what is folded.
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
window.addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});

for (const link of document.querySelectorAll("a[data-of]")) {
  link.href = document.getElementById(link.dataset.of).src;
}

function near(text, value) {
  return text === "" || Math.abs(Number(text) - value) < 1e-9;
}

async function draw(section) {
  const content = (name) =>
    JSON.parse(section.querySelector(`script[data-name="${name}"]`).textContent);
  const boxes = [...section.querySelectorAll("input[name=unlearner]")];
  const slider = section.querySelector("input[name=budget]");
  const output = section.querySelector("output[name=budget]");
  const poison = section.querySelector("select[name=poison]");
  const model = section.querySelector("select[name=model]");
  const budgets = content("budgets");
  const only = content("poison");

  // What the controls say, after the page's text has followed them.
  const chosen = () => {
    const shown = boxes.filter((box) => box.checked).map((box) => box.value);
    const set = {
      shown,
      budget: slider ? budgets[Number(slider.value)] : (budgets[0] ?? 0),
      poison: poison ? Number(poison.value) : only,
    };
    if (slider) {
      output.value = `${Number((100 * set.budget).toPrecision(4))} % of training`;
      slider.setAttribute("aria-valuetext", output.value);
    }
    for (const line of section.querySelectorAll("[data-model]")) {
      const { model: name, budget, poison: share } = line.dataset;
      line.hidden = !shown.includes(name) || !near(budget, set.budget) || !near(share, set.poison);
    }
    for (const option of model?.options ?? []) option.disabled = !shown.includes(option.value);
    if (model && !shown.includes(model.value)) model.value = shown[0];
    return { ...set, model: model?.value ?? "" };
  };

  const set = chosen();
  const tables = { models: content("models"), scores: content("scores") };
  const views = await Promise.all(
    content("charts").map(async (spec, i) => {
      for (const param of spec.params) param.value = set[param.name];
      spec.datasets = { ...spec.datasets, ...tables };
      const place = section.querySelector(`[data-chart="${i}"]`);
      const options = { actions: false, renderer: "svg", tooltip: { theme: "page" } };
      const { view } = await vegaEmbed(place, spec, options);
      // To a screen reader a picture with a title; what it could read out mark by mark is in the table.
      place.setAttribute("role", "img");
      place.querySelector("svg").setAttribute("aria-hidden", "true");
      return view;
    }),
  );

  const drawings = section.querySelector(".charts");
  const update = async () => {
    const set = chosen();
    drawings.style.visibility = set.shown.length ? "" : "hidden"; // an empty chart has no axes
    if (set.shown.length) {
      for (const view of views) {
        for (const [name, value] of Object.entries(set)) view.signal(name, value);
      }
      await Promise.all(views.map((view) => view.runAsync()));
    }
    section.dataset.drawn = Number(section.dataset.drawn) + 1;
  };
  for (const control of section.querySelectorAll("input, select")) {
    control.addEventListener("input", update);
  }
  section.dataset.drawn = 1;
}

for (const section of document.querySelectorAll("section.results")) draw(section);
