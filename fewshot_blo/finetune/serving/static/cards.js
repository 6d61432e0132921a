// One card a picture: what it shows, and what the classifier says about it.

const SHOWN = 4;

const percent = (value) => `${(100 * value).toFixed(1)} %`;

export function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

export const shown = (name) => (name === "" ? "(no name)" : name);

/** A picture that is labelled. */
export class Card {
  constructor(file, { remove, correct }) {
    this.file = file;
    this.address = URL.createObjectURL(file);
    this.node = document.getElementById("card").content.firstElementChild.cloneNode(true);
    const image = this.find(".picture img");
    image.addEventListener("error", () => {
      image.hidden = true;
      this.find(".picture span").hidden = false;
    });
    image.src = this.address;
    image.alt = file.name;
    this.find(".name").textContent = file.name;
    const button = this.find(".remove");
    button.setAttribute("aria-label", `Remove ${file.name}`);
    button.addEventListener("click", () => remove(this));
    const form = this.find(".correct");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      correct(this, form.querySelector("input").value.trim());
    });
    this.wait();
  }

  find(selector) {
    return this.node.querySelector(selector);
  }

  wait() {
    this.find(".label").textContent = "…";
    this.node.setAttribute("aria-busy", "true");
  }

  release() {
    URL.revokeObjectURL(this.address);
    this.node.remove();
  }

  /** Shows a record of the server. */
  show(record) {
    this.node.removeAttribute("aria-busy");
    const failed = record.error !== null;
    const error = this.find(".error");
    error.hidden = !failed;
    error.textContent = record.error || "";
    for (const part of [".label", ".bars", ".near", ".correct"]) this.find(part).hidden = failed;
    if (failed) return;
    this.find(".label").textContent = shown(record.label);
    this.find(".correct input").value = "";
    const ranked = Object.entries(record.probabilities).sort((a, b) => b[1] - a[1]).slice(0, SHOWN);
    this.find(".bars").replaceChildren(...ranked.map(([name, value]) => bar(name, value)));
    this.find(".near ul").replaceChildren(...record.nearest.map(neighbour));
  }
}

function bar(name, value) {
  const item = element("li");
  const words = element("div", "", "words");
  words.append(element("span", shown(name)), element("span", percent(value)));
  const track = element("div", "", "track");
  const filled = element("div");
  filled.style.width = percent(value).replace(" ", "");
  track.append(filled);
  item.append(words, track);
  return item;
}

function neighbour({ label, file, picture }) {
  const item = element("li");
  if (picture) {
    const image = element("img");
    image.src = picture;
    image.alt = "";
    item.append(image);
  }
  item.append(shown(label));
  if (file) item.title = file;
  return item;
}
