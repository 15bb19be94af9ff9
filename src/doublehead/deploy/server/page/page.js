// The page: an image goes to /v1/detect once for each pair of heads; thresholds and classes are applied here, at once.

import { drawn, labelled } from "./drawing.js";
import { suppress } from "./nms.js";

const MOST = 1000; // candidates asked for; NMS among the best k never depends on the others
const $ = (id) => document.getElementById(id);
const state = { model: null, limits: null, file: null, answers: new Map(), shown: [], asked: null };

async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not respond.");
  }
  if (response.ok) return response.json();
  if (response.status === 401) $("key").hidden = false;
  const problem = await response.json().catch(() => ({ detail: `The server answered ${response.status}.` }));
  throw new Error(problem.detail);
}

function tell(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

// What the model offers

async function start() {
  try {
    const found = await ask("v1/models");
    [state.model, state.limits] = [found.models[0], found.limits];
  } catch (error) {
    tell(error.message);
    return;
  }
  const { model } = state;
  $("model").textContent = `${model.name} · ${model.preset} · ${model.classes.length} classes · ${model.device}`;
  document.title = `${model.name} · doublehead`;
  $("score").value = model.decision_threshold;
  if (model.own) $("nms").value = model.own.nms;
  $("nms").disabled = !model.own;
  $("nms-reason").hidden = Boolean(model.own);
  $("nms-reason").textContent = `NMS is fixed ${model.fixed}.`;
  offerHeads();
  $("class-list").replaceChildren(...model.classes.map(classChoice));
  show();
}

function offerHeads() {
  const { model } = state;
  const reasons = new Set();
  for (const [task, place] of [["scores", $("scores")], ["boxes", $("boxes-of")]]) {
    place.querySelectorAll("label").forEach((label) => label.remove());
    for (const head of model[task]) {
      const input = element("input", { type: "radio", name: task, value: head.name, disabled: Boolean(head.reason) });
      input.checked = model.own?.[task] === head.name;
      const title = head.name === "fused" ? "both, fused" : `${head.name}-head`;
      const label = element("label", { className: "choice", title: head.reason ?? "" }, input, title);
      label.classList.toggle("off", input.disabled);
      place.append(label);
      if (head.reason) reasons.add(head.reason.split(";")[0]);
    }
  }
  const able = (task) => model[task].filter((head) => !head.reason).length;
  $("heads").hidden = model.boxes.length < 2;
  $("ghosts-choice").hidden = able("scores") * able("boxes") < 2;
  $("heads-reason").textContent = [...reasons].map((r) => r[0].toUpperCase() + r.slice(1)).join(". ") + (reasons.size ? "." : "");
}

function classChoice(item) {
  const input = element("input", { type: "checkbox", checked: true, value: item.label });
  const swatch = element("span", { className: "swatch" });
  swatch.style.setProperty("--class", item.colour);
  const name = element("span", { className: "name", textContent: item.name });
  const count = element("span", { id: `count-${item.label}` });
  return element("li", {}, element("label", { className: "check" }, input, swatch, name, count));
}

// From an image to detections

function chosen(task) {
  return document.querySelector(`input[name="${task}"]:checked`)?.value ?? null;
}

async function open(file, name) {
  tell("");
  state.asked?.abort();
  state.file = { blob: file, name: name ?? file.name ?? "image" };
  state.answers.clear();
  URL.revokeObjectURL($("photo").src);
  $("photo").removeAttribute("src");
  $("picture").hidden = true;
  $("boxes").replaceChildren();
  show();
  if (state.limits && file.size > state.limits.bytes) {
    close(`${state.file.name} has ${(file.size / 1e6).toFixed(1)} MB; this server accepts at most ${state.limits.bytes / 1e6}.`);
    return;
  }
  $("invitation").hidden = true;
  $("photo").src = URL.createObjectURL(file);
  $("photo").alt = state.file.name;
  $("picture").hidden = false;
  $("stage").classList.remove("empty");
  await detect();
}

function close(problem) {
  state.file = null;
  $("picture").hidden = true;
  $("invitation").hidden = false;
  $("stage").classList.add("empty");
  $("status").textContent = "";
  tell(problem);
  show();
}

async function detect() {
  if (!state.file || !state.model) return;
  const wanted = [[chosen("scores"), chosen("boxes")]];
  if ($("ghosts").checked) wanted.push([state.model.own.scores, state.model.own.boxes]);
  state.asked?.abort();
  const asked = (state.asked = new AbortController());
  const began = performance.now();
  try {
    for (const [scores, boxes] of wanted) {
      const key = `${scores} ${boxes}`;
      if (state.answers.has(key)) continue;
      $("picture").classList.add("busy");
      $("status").textContent = "Detecting …";
      const query = new URLSearchParams({ score: 0 });
      if (scores) Object.entries({ scores, boxes, nms: 1, limit: MOST }).forEach(([k, v]) => query.set(k, v));
      const body = new FormData();
      body.append("images", state.file.blob, state.file.name);
      const answer = await ask(`v1/detect?${query}`, { method: "POST", body, signal: asked.signal });
      answer.images[0].seconds = (performance.now() - began) / 1000;
      state.answers.set(key, answer.images[0]);
    }
    tell("");
  } catch (error) {
    if (error.name === "AbortError") return;
    $("picture").classList.remove("busy");
    if (state.answers.size) tell(error.message);
    else close(error.message);
    return;
  }
  $("picture").classList.remove("busy");
  show();
}

// What is shown

function filtered(answer) {
  if (!answer) return [];
  const own = state.model.own;
  const kept = own ? suppress(answer.detections, Number($("nms").value)).slice(0, own.limit) : answer.detections;
  const labels = new Set([...document.querySelectorAll("#class-list input:checked")].map((input) => Number(input.value)));
  return kept.filter((found) => found.score >= Number($("score").value) && labels.has(found.label));
}

function show() {
  for (const id of ["score", "nms"]) $(`${id}-value`).value = Number($(id).value).toFixed(2);
  if (!state.model) return;
  const answer = state.answers.get(`${chosen("scores")} ${chosen("boxes")}`);
  const { own, classes } = state.model;
  state.shown = filtered(answer);
  const ghosts = $("ghosts").checked ? filtered(state.answers.get(`${own.scores} ${own.boxes}`)) : [];
  const colours = new Map(classes.map((item) => [item.label, item.colour]));
  $("boxes").classList.remove("chosen");
  if (answer) drawn($("boxes"), $("photo"), answer, state.shown, ghosts, colours, $("labels").checked);
  const counts = new Map();
  for (const found of state.shown) counts.set(found.label, (counts.get(found.label) ?? 0) + 1);
  for (const item of classes) $(`count-${item.label}`).textContent = answer ? counts.get(item.label) ?? 0 : "";
  $("found").replaceChildren(...state.shown.map((found, place) => entry(found, place, colours)));
  const many = `${state.shown.length} object${state.shown.length === 1 ? "" : "s"}`;
  if (answer) $("status").textContent = `${many} · ${answer.width} × ${answer.height} · ${answer.seconds.toFixed(2)} s`;
  for (const id of ["save-picture", "save-json"]) $(id).disabled = !answer;
}

function entry(found, place, colours) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.setProperty("--class", colours.get(found.label));
  const name = element("span", { className: "name", textContent: found.name });
  const score = element("span", { className: "score", textContent: found.score.toFixed(3) });
  const button = element("button", { type: "button", title: found.box.map((v) => v.toFixed(1)).join(", ") }, swatch, name, score);
  const mark = (on) => {
    $("boxes").classList.toggle("chosen", on);
    $("boxes").querySelectorAll(`[data-place="${place}"]`).forEach((part) => part.classList.toggle("on", on));
  };
  for (const event of ["focus", "mouseenter"]) button.addEventListener(event, () => mark(true));
  for (const event of ["blur", "mouseleave"]) button.addEventListener(event, () => mark(false));
  return element("li", {}, button);
}

// What can be taken away

function save(blob, ending) {
  const link = element("a", { href: URL.createObjectURL(blob) });
  link.download = `${state.file.name.replace(/\.[^.]*$/, "")}-detections.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

$("save-json").addEventListener("click", () => {
  const { width, height } = state.answers.get(`${chosen("scores")} ${chosen("boxes")}`);
  const heads = { scores: chosen("scores"), boxes: chosen("boxes") };
  const thresholds = { score: Number($("score").value), nms: state.model.own ? Number($("nms").value) : null };
  const content = { model: state.model.name, ...heads, ...thresholds, name: state.file.name, width, height };
  const text = JSON.stringify({ ...content, detections: state.shown }, null, 1);
  save(new Blob([text], { type: "application/json" }), "json");
});

$("save-picture").addEventListener("click", () => {
  const colours = new Map(state.model.classes.map((item) => [item.label, item.colour]));
  const answer = state.answers.get(`${chosen("scores")} ${chosen("boxes")}`);
  labelled($("photo"), answer, state.shown, colours, $("labels").checked).toBlob((blob) => save(blob, "png"));
});

// What people do

function take(items) {
  const file = [...items].find((item) => item.type.startsWith("image/")) ?? items[0];
  if (file) open(file);
}

$("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
for (const event of ["dragenter", "dragover"]) {
  document.addEventListener(event, (drag) => {
    drag.preventDefault();
    $("stage").classList.add("over");
  });
}
document.addEventListener("dragleave", (drag) => drag.relatedTarget || $("stage").classList.remove("over"));
document.addEventListener("drop", (drop) => {
  drop.preventDefault();
  $("stage").classList.remove("over");
  take(drop.dataTransfer.files);
});
$("sample").addEventListener("click", async () => {
  const response = await fetch("sample").catch(() => null);
  if (response?.ok) open(await response.blob(), "sample.jpg");
  else tell("The server does not respond.");
});
$("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key-value").value);
  $("key").hidden = true;
  tell("");
  await start();
  await detect();
});
for (const id of ["score", "nms"]) $(id).addEventListener("input", show);
for (const id of ["class-list", "labels"]) $(id).addEventListener("change", show);
for (const id of ["heads", "ghosts"]) $(id).addEventListener("change", detect);
for (const [id, on] of [["all", true], ["none", false]]) {
  $(id).addEventListener("click", () => {
    document.querySelectorAll("#class-list input").forEach((input) => (input.checked = on));
    show();
  });
}
$("photo").addEventListener("load", () => {
  $("picture").style.setProperty("--ratio", $("photo").naturalWidth / $("photo").naturalHeight);
});
new ResizeObserver(show).observe($("photo"));

start().then(detect); // an image may have come meanwhile
