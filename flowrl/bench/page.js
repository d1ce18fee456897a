"use strict";

const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const say = (text) => { document.getElementById("said").textContent = text; };

/* Tables: a heading sorts the rows of each group, first the better way, then the other, then as they were. */
function sortable(table) {
  const headings = [...table.tHead.rows[0].cells].slice(1);
  const bodies = [...table.tBodies].map((body) => [body, [...body.rows].filter((row) => !row.classList.contains("group"))]);
  headings.forEach((heading, i) => {
    const button = make("button", { type: "button" }, ...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const first = heading.dataset.better === "lower" ? "ascending" : "descending";
      const second = first === "ascending" ? "descending" : "ascending";
      const next = { none: first, [first]: second, [second]: "none" }[heading.getAttribute("aria-sort")];
      headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? next : "none"));
      bodies.forEach(([body, rows]) => body.append(...(next === "none" ? rows : sorted(rows, i + 1, next))));
      say(next === "none" ? "Rows are in their first order." : `Sorted by ${button.textContent.trim()}, ${next}.`);
    });
  });
}

function sorted(rows, column, order) {
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? [1, cell.textContent.trim()] : [0, Number(cell.dataset.value)];
  };
  return [...rows].sort((one, other) => {
    const [[kindA, a], [kindB, b]] = [key(one), key(other)];
    if (kindA !== kindB) return kindA - kindB;
    return sign * (kindA ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  });
}

/* Figures: the values under the pointer, or where the arrow keys are. */
function readable(plot) {
  const lines = JSON.parse(plot.dataset.points);
  const cursor = plot.querySelector(".cursor");
  const tip = plot.nextElementSibling;
  const places = [...new Set(lines.flatMap(([, , points]) => points.map(([x]) => x)))].sort((a, b) => a - b);
  let at = -1;
  const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  const show = (x) => {
    const found = lines.map(([title, kind, points]) => [title, kind, nearest(points, x)]);
    found.sort((a, b) => a[2][1] - b[2][1]);
    const head = found.reduce((best, line) => (Math.abs(line[2][0] - x) < Math.abs(best[2][0] - x) ? line : best))[2];
    tip.replaceChildren(
      make("p", {}, make("b", { textContent: `${plot.dataset.x} ${head[2]}` })),
      ...found.filter(([, , point]) => plot.dataset.marks === "points" || Math.abs(point[0] - x) < 12).map(([title, kind, point]) =>
        make("p", {},
          make("span", {}, make("i", { className: kind }), make("bdi", { textContent: title })),
          make("span", { textContent: plot.dataset.marks === "points" ? `(${point[2]}) ${point[3]}` : point[3] }))),
    );
    cursor.setAttribute("transform", `translate(${head[0]} 0)`);
    cursor.style.visibility = "visible";
    tip.hidden = false;
    const scale = plot.clientWidth / plot.viewBox.baseVal.width;
    const room = plot.parentElement.clientWidth - tip.offsetWidth;
    const beside = head[0] * scale + 12;
    tip.style.left = `${Math.max(0, beside <= room ? beside : Math.min(room, head[0] * scale - tip.offsetWidth - 12))}px`;
    tip.style.top = `${plot.offsetTop + plot.clientHeight - 8}px`;
  };
  const hide = () => { tip.hidden = true; cursor.style.visibility = "hidden"; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = (event.clientX - box.left) * plot.viewBox.baseVal.width / box.width;
    at = places.indexOf(nearest(places.map((place) => [place]), x)[0]);
    show(places[at]);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -places.length, End: places.length }[event.key];
    if (event.key === "Escape") hide();
    if (step === undefined) return;
    event.preventDefault();
    at = Math.min(places.length - 1, Math.max(0, at + step));
    show(places[at]);
  });
}

/* Gallery: two of the pictures over each other, and a slider between them. */
function comparable(section) {
  const pictures = [...section.querySelectorAll(".strip li")].filter((item) => item.querySelector("img"));
  if (pictures.length < 2) return;
  const images = pictures.map((item) => item.querySelector("img"));
  const words = pictures.map((item) => item.querySelector("figcaption").textContent);
  const right = make("img", { className: images[0].className });
  const left = make("img", { className: images[0].className });
  const stage = make("div", { className: "stage" }, right, left);
  const range = make("input", { type: "range", min: 0, max: 100, value: 50 });
  const side = (word, image, chosen) => {
    const select = make("select", {}, ...words.map((text, i) => make("option", { value: i, textContent: text })));
    const update = () => {
      const source = images[select.value];
      [image.src, image.alt, image.width, image.height] = [source.src, source.alt, source.width, source.height];
      range.setAttribute("aria-label", `Share of the left picture, ${words[choices[0]?.value ?? 0]}`);
    };
    select.value = chosen;
    select.addEventListener("change", update);
    return [select, update, make("label", {}, word, select)];
  };
  const choices = [];
  const [first, updateFirst, firstLabel] = side("Left", left, 0);
  const [second, updateSecond, secondLabel] = side("Right", right, pictures.length - 1);
  choices.push(first, second);
  updateFirst();
  updateSecond();
  const move = () => {
    stage.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${words[first.value]}`);
  };
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    if (event.type === "pointerdown") stage.setPointerCapture(event.pointerId);
    const box = stage.getBoundingClientRect();
    range.value = 100 * (event.clientX - box.left) / box.width;
    move();
  };
  range.addEventListener("input", move);
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  stage.addEventListener("dragstart", (event) => event.preventDefault());
  move();
  const sides = make("div", { className: "sides" }, firstLabel, secondLabel);
  section.querySelector(".strip").before(make("div", { className: "slider" }, stage, range, sides));
}

/* A number shows its runs in a dialog; the link itself leads to them in the appendix. */
function showRuns(link) {
  const set = document.querySelector(link.getAttribute("href"));
  const rows = [...set.querySelectorAll("a")].map((each) => document.querySelector(each.getAttribute("href")));
  const dialog = document.querySelector("dialog");
  const close = make("button", { type: "button", textContent: "Close" });
  close.addEventListener("click", () => dialog.close());
  const items = rows.map((row) => {
    const text = [...row.cells].map((cell) => cell.textContent);
    const [, what, seed, device, time, , recipe] = text;
    const to = make("a", { href: `#${row.id}`, textContent: text[0] });
    to.addEventListener("click", () => dialog.close());
    const ended = row.querySelector(".failed") ? ", failed" : "";
    const about = [`: ${what}, seed ${seed}`, device, time, `recipe ${recipe}${ended}`].filter(Boolean).join(", ");
    return make("li", {}, to, about, make("code", { className: "command", textContent: row.querySelector(".command").textContent }));
  });
  const count = rows.length === 1 ? "one run" : `${rows.length} runs`;
  const title = make("h2", { textContent: `${link.firstChild.textContent} comes from ${count}` });
  dialog.replaceChildren(make("header", {}, title, close), make("ul", {}, ...items));
  dialog.showModal();
  close.focus();
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("svg[data-points]").forEach(readable);
document.querySelectorAll(".comparison").forEach(comparable);
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.runs");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  showRuns(link);
});
document.querySelector("dialog").addEventListener("click", (event) => {
  if (event.target === event.currentTarget) event.currentTarget.close();
});

const entries = new Map([...document.querySelectorAll("nav a")].map((link) => [link.getAttribute("href").slice(1), link]));
const watcher = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    entries.forEach((link) => link.removeAttribute("aria-current"));
    entries.get(target.getAttribute("aria-labelledby"))?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-10% 0px -80% 0px" });
document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
