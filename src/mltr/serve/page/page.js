"use strict";

const SENT_TOGETHER = 4; // maximum concurrent requests
const NEAR_MISSES = 2; // labels below the threshold that are shown initially
const MOST_TRIES = 8; // maximum attempts while the server is busy

const find = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;
const photos = []; // {file, element, labels, error, mayRetry, heats, showsAll, stop}
const waiting = [];
let model = null; // response of /v1/labels
let thresholds = new Map();
let implied = new Map(); // what holds wherever a label does, in a hierarchy of labels
let underway = 0;

// -- the server ---------------------------------------------------------------------------------

class Refusal extends Error {
  constructor(message, isFinal = true) {
    super(message);
    this.isFinal = isFinal; // whether the same photo would be refused again
  }
}

const isStill = (key) => sessionStorage.getItem("key") === key; // else there is another by now

async function call(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  for (let attempt = 1; ; attempt++) {
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (!await canRead(options.body)) throw new Refusal("This file can’t be opened any more.");
      throw new Refusal("The server can’t be reached.", false);
    }
    if (answer.ok) return answer;
    if (answer.status === 401 && isStill(key)) askForKey();
    if (answer.status !== 503 || attempt === MOST_TRIES) {
      const told = await answer.json().catch(() => ({}));
      const message = sentence(told.detail || `The server answered ${answer.status}.`);
      throw new Refusal(message, ![401, 408].includes(answer.status) && answer.status < 500);
    }
    const seconds = Number(answer.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
}

const canRead = async (file) => !file || file.slice(0, 1).arrayBuffer().then(() => true, () => false);

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function post(path, photo) {
  const known = /^image\/(jpeg|png|webp|gif|bmp|tiff|avif|heic|heif)$/.test(photo.file.type);
  const type = known ? photo.file.type : "application/octet-stream";
  const signal = photo.stop.signal;
  return call(path, { method: "POST", body: photo.file, headers: { "Content-Type": type }, signal });
}

async function learnModel() {
  const key = sessionStorage.getItem("key");
  try {
    model = await (await call("v1/labels")).json();
  } catch (error) {
    if (isStill(key) || !sessionStorage.getItem("key")) find("about").textContent = error.message;
    return;
  }
  find("key-form").hidden = true;
  thresholds = new Map(model.labels.map((one) => [one.label, one.threshold]));
  implied = new Map(model.labels.map((one) => [one.label, one.implies]));
  const names = model.labels.map((one) => one.label);
  const some = names.length > 8 ? `${names.slice(0, 7).join(", ")} and ${names.length - 7} more` : names.join(", ");
  find("about").textContent = `The model “${model.model}” knows ${some}.`;
  photos.filter((photo) => photo.mayRetry).forEach(retry);
  sendMore();
}

function askForKey() {
  sessionStorage.removeItem("key");
  find("key-form").hidden = false;
  find("key").focus();
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = find("key").value.trim();
  find("key").value = "";
  if (/[^!-~]/.test(key)) { // which no header takes
    find("about").textContent = "A key consists of letters and signs of ASCII, without blanks.";
    return;
  }
  sessionStorage.setItem("key", key);
  learnModel();
});

// -- input ---------------------------------------------------------------------------------------

function add(files) {
  for (const file of files) {
    const element = find("card").content.firstElementChild.cloneNode(true);
    const photo = { file, element, labels: null, error: "", heats: new Map(), showsAll: false, stop: new AbortController() };
    const name = file.name || "pasted picture";
    const plain = element.querySelector(".plain");
    plain.addEventListener("error", () => plain.classList.add("absent"));
    plain.src = URL.createObjectURL(file);
    plain.alt = name;
    element.querySelector("h2").textContent = element.querySelector("h2").title = name;
    element.querySelector(".remove").setAttribute("aria-label", `Remove ${name}`);
    element.querySelector(".remove").addEventListener("click", () => remove(photo));
    element.querySelector(".again").addEventListener("click", () => {
      retry(photo);
      element.querySelector(".remove").focus();
      sendMore();
    });
    element.querySelector(".more").addEventListener("click", () => {
      photo.showsAll = !photo.showsAll;
      draw(photo);
    });
    element.addEventListener("keydown", (event) => moveBetweenTags(event, photo));
    photos.push(photo);
    waiting.push(photo);
    find("cards").append(element);
  }
  arrange();
  sendMore();
}

function remove(photo) {
  photo.stop.abort();
  for (const list of [photos, waiting]) {
    const place = list.indexOf(photo);
    if (place >= 0) list.splice(place, 1);
  }
  URL.revokeObjectURL(photo.element.querySelector(".plain").src);
  for (const url of photo.heats.values()) URL.revokeObjectURL(url);
  const next = photo.element.nextElementSibling || photo.element.previousElementSibling;
  photo.element.remove();
  (next ? next.querySelector(".remove") : find("files")).focus();
  arrange();
}

function retry(photo) {
  Object.assign(photo, { error: "", mayRetry: false });
  photo.element.setAttribute("aria-busy", "true");
  photo.element.querySelector(".message").textContent = "waiting …";
  draw(photo);
  waiting.push(photo);
  arrange();
}

function sendMore() {
  while (model && waiting.length && underway < SENT_TOGETHER) tag(waiting.shift());
}

async function tag(photo) {
  underway++;
  photo.element.querySelector(".message").textContent = "looking …";
  try {
    if (photo.file.size > 1e6 * model.limits.max_body_mb) {
      throw new Refusal(`Larger than ${model.limits.max_body_mb} MB, the limit of this server.`);
    }
    const answer = await (await post(`v1/predict?top=${model.labels.length}`, photo)).json();
    photo.labels = answer.results[0].labels;
  } catch (error) {
    if (error.name === "AbortError") return;
    photo.error = error instanceof Refusal ? error.message : "Something went wrong on this page.";
    photo.mayRetry = error.isFinal === false;
  } finally {
    underway--;
    sendMore();
  }
  photo.element.setAttribute("aria-busy", "false");
  draw(photo);
  arrange();
}

// -- tags -------------------------------------------------------------------------------------------

const usesOwn = () => document.querySelector("[name=rule]:checked").value === "own";
const thresholdOf = (label) => (usesOwn() ? thresholds.get(label) : find("slider").value / 100);

function tagsOf(photo) {
  const labels = photo.labels || [];
  const reached = labels.filter((one) => one.prob >= thresholdOf(one.label)).map((one) => one.label);
  const tags = new Set(reached.flatMap((label) => [label, ...implied.get(label)]));
  return labels.filter((one) => tags.has(one.label));
}

function draw(photo) {
  const { element, labels } = photo;
  const message = element.querySelector(".message");
  element.classList.toggle("failed", Boolean(photo.error));
  element.querySelector(".again").hidden = !photo.mayRetry;
  if (!labels) {
    if (photo.error) message.textContent = photo.error;
    return;
  }
  const reached = new Set(tagsOf(photo));
  message.textContent = photo.error || (reached.size ? "" : "Nothing reaches its threshold.");
  let misses = 0;
  const shown = labels.filter((one) => reached.has(one) || photo.showsAll || misses++ < NEAR_MISSES);
  const list = element.querySelector(".tags");
  const rows = new Map([...list.children].map((row) => [row.dataset.label, row]));
  const focused = document.activeElement;
  list.replaceChildren(...shown.map((one) => {
    const row = rows.get(one.label) || newTag(photo, one);
    const button = row.firstElementChild;
    const isReached = reached.has(one);
    row.className = isReached ? "reached" : "below";
    button.style.setProperty("--threshold", `${100 * thresholdOf(one.label)}%`);
    const kind = one.category ? `, ${one.category}` : "";
    button.setAttribute("aria-label", `${one.label}${kind}, ${percent(one.prob)}${isReached ? "" : ", below its threshold"}`);
    return row;
  }));
  if (list.contains(focused)) focused.focus(); // moving a row drops its focus
  const more = element.querySelector(".more");
  more.hidden = shown.length === labels.length && !photo.showsAll || reached.size + NEAR_MISSES >= labels.length;
  more.textContent = photo.showsAll ? "Show fewer" : `Show ${labels.length - shown.length} more`;
  more.setAttribute("aria-expanded", photo.showsAll);
}

function newTag(photo, one) {
  const row = find("tag").content.firstElementChild.cloneNode(true);
  const button = row.firstElementChild;
  row.dataset.label = one.label;
  button.style.setProperty("--prob", `${100 * one.prob}%`);
  button.querySelector(".name").textContent = one.label;
  button.querySelector(".category").textContent = one.category || "";
  button.querySelector(".prob").textContent = percent(one.prob);
  button.disabled = !model.explains;
  button.title = model.explains ? "Show where the evidence lies" : "";
  button.addEventListener("click", () => toggleHeat(photo, one.label));
  return row;
}

function moveBetweenTags(event, photo) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const buttons = [...photo.element.querySelectorAll(".tag")];
  const place = buttons.indexOf(document.activeElement);
  if (!step || place < 0) return;
  event.preventDefault();
  buttons[(place + step + buttons.length) % buttons.length].focus();
}

// -- heat maps ------------------------------------------------------------------------------------

async function toggleHeat(photo, label) {
  const isShown = photo.shown === label;
  showHeat(photo, isShown ? null : label);
  if (isShown || photo.heats.has(label)) return;
  try {
    const answer = await post(`v1/explain?label=${encodeURIComponent(label)}`, photo);
    photo.heats.set(label, URL.createObjectURL(await answer.blob()));
    photo.error = "";
    showHeat(photo, photo.shown);
  } catch (error) {
    if (error.name === "AbortError") return;
    photo.error = error.message;
    showHeat(photo, null);
  }
  draw(photo);
}

function showHeat(photo, label) {
  photo.shown = label;
  const { element } = photo;
  const url = photo.heats.get(label);
  const heat = element.querySelector(".heat");
  heat.hidden = element.querySelector(".legend").hidden = !url;
  if (url) {
    heat.src = url;
    heat.alt = `Where the evidence for ${label} lies: red for it, blue against it`;
    element.querySelector(".what").textContent = label;
  }
  for (const row of element.querySelectorAll(".tags li")) {
    row.firstElementChild.setAttribute("aria-pressed", row.dataset.label === label);
  }
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") photos.forEach((photo) => showHeat(photo, null));
});

// -- the whole page -------------------------------------------------------------------------------

function arrange() {
  const done = photos.filter((photo) => photo.labels).length;
  const failed = photos.filter((photo) => photo.error && !photo.labels).length;
  const open = photos.length - done - failed;
  document.body.classList.toggle("filled", photos.length > 0);
  find("tools").hidden = !photos.length;
  const words = [];
  if (done) words.push(`${done} ${done === 1 ? "photo" : "photos"} tagged`);
  if (failed) words.push(`${failed} failed`);
  if (open) words.push(`${open} to go`);
  const hint = done && model.explains ? ". Click a tag to see where the evidence for it lies." : "";
  find("status").textContent = words.length ? words.join(", ") + hint : "";
  for (const button of document.querySelectorAll("[data-form]")) button.disabled = !done;
}

function changeThreshold() {
  find("slider-value").textContent = percent(find("slider").value / 100);
  photos.forEach(draw);
}

find("slider").addEventListener("input", () => {
  document.querySelector("[name=rule][value=one]").checked = true;
  changeThreshold();
});
for (const radio of document.querySelectorAll("[name=rule]")) radio.addEventListener("change", changeThreshold);
find("clear").addEventListener("click", () => [...photos].forEach(remove));

find("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}

// -- download ---------------------------------------------------------------------------------------

const quote = (text) => `"${text.replaceAll('"', '""')}"`;
const asCell = (text) => {
  const isNumber = /^[+-]?[0-9.]+(e[+-]?[0-9]+)?$/.test(text);
  const safe = /^'*[=+@\t\r-]/.test(text) && !isNumber ? `'${text}` : text; // else a formula
  return /[",\n\r]/.test(safe) ? quote(safe) : safe;
};
const joinTags = (list, separator) =>
  list.map((one) => (/[,;|"\n]/.test(one) ? quote(one) : one)).join(separator);

// The columns, cells and keys of `mltr predict`.
const WRITERS = {
  csv: (rows) => [Object.keys(rows[0]).join(","), ...rows.map(({ path, ...lists }) =>
    [path, ...Object.values(lists).map((list) => joinTags(list, "; "))].map(asCell).join(",")),
  ].join("\n") + "\n",
  json: (rows) => JSON.stringify(rows, null, 2) + "\n",
  txt: (rows) => rows.map((row) => `${row.path}: ${joinTags(row.labels, ", ")}\n`).join(""),
};

for (const button of document.querySelectorAll("[data-form]")) {
  button.addEventListener("click", () => {
    const form = button.dataset.form;
    const rows = photos.filter((photo) => photo.labels).map((photo) => ({
      path: photo.file.name,
      labels: tagsOf(photo).map((one) => one.label),
      probs: tagsOf(photo).map((one) => one.prob),
      ...(model.labels[0].category && { categories: tagsOf(photo).map((one) => one.category) }),
    }));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([WRITERS[form](rows)]));
    link.download = `tags.${form}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

learnModel();
