(() => {
"use strict";
const root = document.documentElement, one = (query) => document.querySelector(query), all = (query) => [...document.querySelectorAll(query)];
root.classList.add("scripted");
const holder = one("#data"), data = holder ? JSON.parse(holder.textContent) : {};

const theme = one("#theme");
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const name = () => { theme.textContent = dark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
name();

const copy = async (button, text) => {
  const before = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
  catch {
    const area = document.createElement("textarea");
    area.value = text; document.body.append(area); area.select();
    button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    area.remove();
  }
  setTimeout(() => { button.textContent = before; }, 1600);
};
all(".copy").forEach((button) => button.addEventListener("click", () => copy(button, button.closest(".command").querySelector("pre").textContent)));
const embed = one("#copy-embed"), share = one("#copy-share");
embed?.addEventListener("click", () => copy(embed, one("#embed").value));
share?.addEventListener("click", () => copy(share, share.dataset.text));

const SVG = "http://www.w3.org/2000/svg";
const make = (tag, attributes) => { const node = document.createElementNS(SVG, tag); for (const key in attributes) node.setAttribute(key, attributes[key]); return node; };
const element = (tag, kind, text) => { const node = document.createElement(tag); if (kind) node.className = kind; if (text) node.textContent = text; return node; };
const drawBar = (bar) => {
  const box = element("div"), head = element("div", "bar-head"), legend = element("ul", "legend");
  head.append(element("strong", "", bar.name), element("span", "", bar.caption));
  const svg = make("svg", {class: "bar", role: "img", "aria-label": `${bar.name}: ${bar.caption}`});
  for (const part of bar.parts) {
    svg.append(make("rect", {class: part.key, x: part.x + "%", width: part.width + "%", height: "100%"}));
    const item = element("li"), key = make("svg", {"aria-hidden": "true"});
    key.append(make("rect", {class: part.key, width: "100%", height: "100%"}));
    item.append(key, part.label + " ", element("span", "", part.size));
    legend.append(item);
  }
  if (bar.edge) svg.append(make("line", {class: "edge", x1: bar.edge + "%", x2: bar.edge + "%", y1: 0, y2: "100%"}));
  box.append(head, svg, legend);
  return box;
};
const showQuant = (option) => {
  for (const [key, value, sub] of option.tiles) {
    const node = one(`[data-tile="${key}"]`);
    if (!node) continue;
    node.textContent = value;
    one(`[data-tile="${key}-sub"]`).textContent = sub;
  }
  one("#quant-note").textContent = option.line;
  if (option.bars.length) one("#bars").replaceChildren(...option.bars.map(drawBar));
};
const quants = all("input[name=quant]");
quants.forEach((input) => input.addEventListener("change", () => showQuant(data.options[input.value])));
all("input[name=mode]").forEach((input) => input.addEventListener("change", () => {
  const mode = data.modes.find((row) => row.key === input.value);
  for (const key of ["word", "meaning", "plan"]) one(`[data-mode=${key}]`).textContent = mode[key];
  const match = quants.find((other) => data.options[other.value].quant === mode.quant);
  if (match && !match.checked) { match.checked = true; showQuant(data.options[match.value]); }
}));

const screen = one("#screen"), timing = one("#timing"), skip = one("#skip");
let run = 0, skipped = false;
skip?.addEventListener("click", () => { skipped = true; });
const play = (turn, pace) => {
  const mine = ++run, start = performance.now(), rate = data.decode[pace];
  let wait = turn.wait[pace] * 1000, first = 0, shown = 0;
  skipped = false; skip.disabled = false; timing.textContent = "";
  screen.replaceChildren(element("b", "", "> " + turn.prompt), "\n");
  const reply = document.createTextNode("");
  screen.append(reply);
  const step = () => {
    if (mine !== run) return;
    const now = performance.now() - start;
    if (skipped && !shown && now < wait) wait = now;
    const due = now < wait ? 0 : Math.min(turn.pieces.length, 1 + Math.floor((now - wait) / 1000 * rate));
    if (!due) timing.textContent = `waiting ${(now / 1000).toFixed(1)} of ${(wait / 1000).toFixed(1)} s`;
    if (due > shown) {
      if (!shown) { first = now; skip.disabled = true; }
      reply.appendData(turn.pieces.slice(shown, due).join(""));
      shown = due;
    }
    if (shown < turn.pieces.length) { requestAnimationFrame(step); return; }
    const seconds = (now - first) / 1000, pace_now = (shown - 1) / Math.max(seconds, 0.001);
    timing.textContent = `first token after ${(first / 1000).toFixed(2)} s, then ${shown} tokens at ${pace_now.toFixed(1)} tok/s`;
    screen.dataset.done = JSON.stringify({first: first / 1000, total: now / 1000, tokens: shown});
  };
  delete screen.dataset.done;
  requestAnimationFrame(step);
};
if (screen) screen.textContent = "Press a button: the reply comes at the speed and after the wait expected here.";
all("[data-turn]").forEach((button) => button.addEventListener("click", () => play(data.turns[button.dataset.turn], one("input[name=pace]:checked").value)));
})();
