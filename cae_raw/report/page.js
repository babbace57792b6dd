"use strict";
// The page is complete without this; here it learns to sort, to slide and to tell values.
const root = document.documentElement;
addEventListener("error", (event) => { root.dataset.error = event.message; });
const byId = (id) => document.getElementById(id);

function themes() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  const name = () => { button.textContent = isDark() ? "Light colours" : "Dark colours"; };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  system.addEventListener("change", name);
  button.hidden = false;
  name();
}

// --- the table -------------------------------------------------------------------------------

function sortBy(header, direction) {
  const table = header.closest("table");
  const column = header.cellIndex;
  const value = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what is missing stays at the end
    const numbers = Number(x) - Number(y);
    return direction * (Number.isNaN(numbers) ? x.localeCompare(y, "en", { numeric: true }) : numbers);
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
}

// In the address, #sort=test_psnr or #sort=-test_psnr opens the page sorted.
function sortable() {
  for (const button of document.querySelectorAll("thead button")) {
    const header = button.closest("th");
    button.disabled = false;
    button.addEventListener("click", () => {
      sortBy(header, header.getAttribute("aria-sort") === "ascending" ? -1 : 1);
    });
  }
  const wanted = /^#sort=(-?)(\w+)$/.exec(location.hash);
  const header = wanted && document.querySelector(`th[data-column="${wanted[2]}"]`);
  if (header) sortBy(header, wanted[1] ? -1 : 1);
}

// --- the curves ------------------------------------------------------------------------------

function curves() {
  const chart = byId("chart");
  if (!chart) return;
  const { runs, digits } = JSON.parse(byId("data").textContent);
  const [first, last, left, right] =
    ["first", "last", "left", "right"].map((name) => Number(chart.dataset[name]));
  const marker = byId("marker");
  const range = byId("epoch");
  const write = (value) => {
    if (value === null || value === undefined) return "-";
    return digits === null ? String(Number(value.toPrecision(4))) : value.toFixed(digits);
  };
  const show = () => {
    const epoch = Number(range.value);
    const x = left + (epoch - first) / (last - first) * (right - left);
    marker.setAttribute("x1", x);
    marker.setAttribute("x2", x);
    marker.setAttribute("visibility", "visible");
    byId("epoch-shown").textContent = epoch;
    runs.forEach((run, i) => {
      const near = run.epochs.findIndex((each) => each >= epoch);
      const at = epoch < run.epochs[0] ? -1 : near;
      byId(`train-${i}`).textContent = write(run.train[at]);
      byId(`validation-${i}`).textContent = write(run.validation[at]);
    });
  };
  range.addEventListener("input", show);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    range.value = Math.round(first + (x - left) / (right - left) * (last - first));
    show();
  });
  for (const row of document.querySelectorAll("#legend tbody tr")) {
    const fade = (name, run) => {
      for (const line of chart.querySelectorAll("[data-run]")) {
        line.classList.toggle(name, run !== null && line.dataset.run !== run);
      }
    };
    row.addEventListener("pointerenter", () => fade("faded", row.dataset.run));
    row.addEventListener("pointerleave", () => fade("faded", null));
  }
  byId("epoch-control").hidden = false;
}

// --- reconstructions under their inputs --------------------------------------------------------

function slider() {
  const control = byId("slider");
  if (!control) return;
  const [choice, range, tiles] = [byId("slider-run"), byId("slider-cut"), byId("tiles")];
  const copy = (image, words) => {
    const made = new Image();
    made.src = image.src;
    made.alt = words;
    return made;
  };
  const fill = () => {
    const outputs = document.querySelectorAll(`#strip-${choice.value} img`);
    const inputs = document.querySelectorAll(`#${byId(`strip-${choice.value}`).dataset.inputs} img`);
    tiles.replaceChildren(...[...outputs].map((output, i) => {
      const tile = document.createElement("div");
      tile.className = "tile";
      tile.append(copy(inputs[i], inputs[i].alt), copy(output, output.alt));
      return tile;
    }));
  };
  const cut = () => {
    const part = `${range.value}%`;
    tiles.style.setProperty("--cut", part);
    range.setAttribute("aria-valuetext", `${part} input, the rest reconstruction`);
  };
  choice.addEventListener("change", fill);
  range.addEventListener("input", cut);
  tiles.addEventListener("pointermove", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    const box = tile.getBoundingClientRect();
    range.value = Math.round((event.clientX - box.left) / box.width * 100);
    cut();
  });
  fill();
  cut();
  control.hidden = false;
}

themes();
sortable();
curves();
slider();
root.dataset.ready = "true";
