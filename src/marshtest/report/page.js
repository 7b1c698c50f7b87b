// The page's controls set the same signals in every chart of their section, and hide lines of its tables.
"use strict";

const root = document.documentElement;

function paint(theme) {
  root.dataset.theme = theme;
  const dark = theme === "dark";
  const button = document.getElementById("theme");
  button.textContent = dark ? "Light" : "Dark";
  button.setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
}

const asked = window.matchMedia("(prefers-color-scheme: dark)");
paint(asked.matches ? "dark" : "light");
asked.addEventListener("change", (event) => paint(event.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => {
  paint(root.dataset.theme === "dark" ? "light" : "dark");
});

// Printed pages show what is folded.
window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});

for (const link of document.querySelectorAll("a[data-of]")) {
  link.href = document.getElementById(link.dataset.of).src;
}

function content(section, name) {
  return JSON.parse(section.querySelector(`script[data-name="${name}"]`).textContent);
}

function near(text, value) {
  return text === "" || Math.abs(Number(text) - value) < 1e-9;
}

async function draw(section) {
  const tables = { models: content(section, "models"), scores: content(section, "scores") };
  const specs = content(section, "charts");
  const hidden = () =>
    [...section.querySelectorAll("input[name=unlearner]:not(:checked)")].map((box) => box.value);
  const slider = section.querySelector("input[name=budget]");
  const budgets = content(section, "budgets");
  const poison = section.querySelector("select[name=poison]");
  const model = section.querySelector("select[name=model]");
  const signals = () => ({
    hidden: hidden(),
    budget: slider ? budgets[Number(slider.value)] : (budgets[0] ?? 0),
    poison: poison ? Number(poison.value) : content(section, "poison"),
    model: model ? model.value : "",
  });

  const views = await Promise.all(
    specs.map(async (spec, i) => {
      const own = structuredClone(spec);
      const set = signals();
      for (const param of own.params) param.value = set[param.name];
      own.datasets = { ...own.datasets, ...tables };
      const place = section.querySelector(`[data-chart="${i}"]`);
      const options = { actions: false, renderer: "svg", tooltip: { theme: "custom" } };
      return (await vegaEmbed(place, own, options)).view;
    }),
  );

  const update = async () => {
    const set = signals();
    const out = section.querySelector("output[name=budget]");
    if (out) out.value = `${Number((100 * set.budget).toPrecision(4))} % of training`;
    if (slider) slider.setAttribute("aria-valuetext", out.value);
    for (const line of section.querySelectorAll("[data-model]")) {
      const { model: name, budget, poison: share } = line.dataset;
      line.hidden =
        set.hidden.includes(name) || !near(budget, set.budget) || !near(share, set.poison);
    }
    await Promise.all(
      views.map((view) => {
        for (const [name, value] of Object.entries(set)) view.signal(name, value);
        return view.runAsync();
      }),
    );
    section.dataset.drawn = String(Number(section.dataset.drawn ?? 0) + 1);
  };
  for (const control of section.querySelectorAll("input, select")) {
    control.addEventListener("input", update);
  }
  await update();
}

for (const section of document.querySelectorAll("section.results")) draw(section);
