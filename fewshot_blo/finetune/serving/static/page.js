// The page: pictures that are labelled, corrected labels, new classes, and versions.

import { Card, element, shown } from "./cards.js";
import * as server from "./server.js";

const at = (id) => document.getElementById(id);
let cards = [];
let state = null;
let busy = false;
let last = Promise.resolve();

function say(text) {
  at("status").textContent = text;
}

function complain(text, kind = "error") {
  const line = element("div", "", kind === "warning" ? "message warning" : "message");
  const close = element("button", "✕");
  close.type = "button";
  close.setAttribute("aria-label", "Close this message");
  close.addEventListener("click", () => line.remove());
  line.append(element("span", text), close);
  at("messages").append(line);
}

/** Runs work that asks the server, one after the other, and says what it returns. */
function during(text, work) {
  last = last.then(() => run(text, work));
  return last;
}

async function run(text, work) {
  busy = true;
  at("messages").replaceChildren();
  say(text);
  enable();
  try {
    if (!state) await begin();
    say((await work()) || "");
  } catch (error) {
    say("");
    complain(error.message);
  } finally {
    busy = false;
    enable();
  }
}

function enable() {
  for (const button of document.querySelectorAll("main button[type=submit], #clear, .remove")) {
    button.disabled = busy;
  }
  at("undo").disabled = busy || !state?.can_undo;
}

function describe(found) {
  state = found;
  const images = found.classes.reduce((sum, { images }) => sum + images, 0);
  document.title = found.file;
  at("file").textContent = found.file;
  const place = found.folder ? `, in ${found.folder}` : "";
  at("summary").textContent = `${found.classes.length} classes from ${images} images${place}`;
  at("known").textContent = `${found.known[0].toUpperCase()}${found.known.slice(1)}.`;
  at("album").hidden = found.pictures;
  at("classes").replaceChildren(...found.classes.map(({ name, images }) => {
    const item = element("li", shown(name));
    item.append(element("span", String(images)));
    return item;
  }));
  at("names").replaceChildren(...found.classes.map(({ name }) => {
    const option = element("option");
    option.value = name;
    return option;
  }));
  enable();
}

async function begin() {
  const found = await server.classes();
  describe(found);
  const [learned, ...notes] = found.said;
  if (learned) log(learned, notes, found.file);
}

function log(learned, notes, file) {
  at("no-changes").hidden = true;
  const item = element("li", `${file}: ${learned}.`);
  for (const note of notes) item.append(element("p", `${note}.`, "note"));
  at("log").prepend(item);
}

/** Labels cards again, a few at a time, so that first answers come soon. */
async function label(some) {
  some.forEach((card) => card.wait());
  let done = 0;
  for (const files of server.parts(some.map((card) => card.file))) {
    say(some.length > 1 ? `Labelling ${done + 1} to ${done + files.length} of ${some.length} …` : "Labelling …");
    const records = await server.predict(files);
    records.forEach((record, place) => some[done + place].show(record));
    done += files.length;
  }
}

function count() {
  at("tools").hidden = cards.length === 0;
  at("count").textContent = cards.length === 1 ? "1 picture" : `${cards.length} pictures`;
}

function remove(card) {
  card.release();
  cards = cards.filter((other) => other !== card);
  count();
}

async function add(files, folders = []) {
  if (!files.length && !folders.length) return;
  await during("Labelling …", async () => {
    folders.forEach((name) => complain(`${name} is a folder: open it and drop the pictures in it.`));
    const refused = files.map((file) => server.refusal(file, state.limits)).filter(Boolean);
    refused.forEach((text) => complain(text));
    const fresh = files
      .filter((file) => !server.refusal(file, state.limits))
      .map((file) => new Card(file, { remove, correct }));
    at("cards").prepend(...fresh.map((card) => card.node));
    cards = [...fresh, ...cards];
    count();
    enable();
    try {
      await label(fresh);
    } catch (error) {
      fresh.filter((card) => card.node.ariaBusy === "true").forEach(remove);
      throw error;
    }
  });
}

async function learn(request) {
  const found = await request;
  const changed = found.version !== state.version;
  describe(found);
  if (changed) log(found.learned, found.notes, found.file);
  found.notes.forEach((note) => complain(`${note[0].toUpperCase()}${note.slice(1)}.`, "warning"));
  if (changed && cards.length) await label(cards);
  return changed ? `${found.file} written: ${found.learned}.` : "Nothing new was learned.";
}

async function correct(card, name) {
  if (!name) return;
  const known = state.classes.some((other) => other.name === name);
  const request = known ? server.addImages : server.addClass;
  await during(`Learning ${card.file.name} as ${name} …`, () => learn(request(name, [card.file])));
}

at("pictures").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) {
    event.preventDefault();
    add(files);
  }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const folders = [...event.dataTransfer.items]
    .map((item) => item.webkitGetAsEntry?.())
    .filter((entry) => entry?.isDirectory)
    .map((entry) => entry.name);
  add([...event.dataTransfer.files].filter((file) => !folders.includes(file.name)), folders);
});

at("clear").addEventListener("click", () => {
  cards.forEach((card) => card.release());
  cards = [];
  count();
});

at("undo").addEventListener("click", () =>
  during("Going back …", async () => {
    const before = state.file;
    describe(await server.undo());
    log(`back to this version; ${before} is kept`, [], state.file);
    if (cards.length) await label(cards);
    return `Back to ${state.file}.`;
  }));

at("new-pictures").addEventListener("change", (event) => {
  const images = [...event.target.files].slice(0, 20).map((file) => {
    const image = element("img");
    image.addEventListener("load", () => URL.revokeObjectURL(image.src));
    image.alt = file.name;
    image.src = URL.createObjectURL(file);
    return image;
  });
  at("new-previews").replaceChildren(...images);
});

at("new-class").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = at("new-name").value.trim();
  const files = [...at("new-pictures").files];
  during(`Learning ${name} …`, async () => {
    const refused = files.map((file) => server.refusal(file, state.limits)).find(Boolean);
    const problem = refused || server.tooMany(files, state.limits);
    if (problem) throw new Error(problem);
    const said = await learn(server.addClass(name, files));
    event.target.reset();
    at("new-previews").replaceChildren();
    return said;
  });
});

during("", async () => {});
