// Requests to the server. A failure is an Error whose message can be shown to a person.

const MIB = 2 ** 20;

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer: start fewshot-blo serve again, then reload this page.");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(content.error || `The server answered ${response.status}.`);
  }
  return content;
}

function form(files, fields = {}) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  for (const file of files) body.append("files", file, file.name);
  return { method: "POST", body };
}

export const classes = () => answer("/classes");
export const predict = (files) => answer("/predict", form(files));
export const addClass = (name, files) => answer("/classes", form(files, { name }));
export const addImages = (name, files) => answer("/images", form(files, { name }));
export const undo = () => answer("/undo", { method: "POST" });

/** Why a file cannot be sent; empty if it can. */
export function refusal(file, limits) {
  if (file.size === 0) return `${file.name} is empty.`;
  if (file.size > limits.file_mib * MIB) {
    return `${file.name} has ${Math.round(file.size / MIB)} MiB: at most ${limits.file_mib} can be sent.`;
  }
  return "";
}

/** Why files cannot be sent together; empty if they can. */
export function tooMany(files, limits) {
  const size = files.reduce((sum, file) => sum + file.size, 0);
  if (files.length > limits.files || size > (limits.body_mib - 1) * MIB) {
    return `Choose at most ${limits.files} pictures of ${limits.body_mib} MiB together.`;
  }
  return "";
}

/** Files in parts that are small enough to be answered soon. */
export function parts(files) {
  const found = [];
  for (let start = 0; start < files.length;) {
    let end = start + 1;
    let size = files[start].size;
    while (end < files.length && end < start + 12 && size + files[end].size < 30 * MIB) {
      size += files[end].size;
      end += 1;
    }
    found.push(files.slice(start, end));
    start = end;
  }
  return found;
}
