"use strict";
// The server segments a picture once and sends the level of each pixel: how many of the thresholds 0.01 to 0.99 its
// probability reaches. All that the slider changes is computed here.

const OUTLINE = [255, 200, 0];
const TINT_ALPHA = 50;
const find = (id) => document.getElementById(id);
let shown = null; // { key, name, width, height, levels, counts }
let newest = 0; // number of the last file that was dropped: answers to earlier ones come too late
let settings = { max_bytes: Infinity };
let frame = 0;

function say(text, isError = false) {
  find("status").textContent = text;
  find("status").classList.toggle("error", isError);
}

async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error("the program does not answer: is it still running in its terminal?");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error || `the program answered ${response.status}`);
  }
  return response;
}

async function take(files) {
  if (!files.length) return;
  const file = files[0];
  const number = ++newest;
  const more = files.length > 1 ? ` The first of ${files.length} files; glioma-dist predict takes a folder.` : "";
  if (file.size > settings.max_bytes) {
    say(`${file.name}: has ${file.size} bytes, more than the ${settings.max_bytes} of this page; use glioma-dist predict`, true);
    return;
  }
  say(`${file.name}: segmenting …${more}`);
  try {
    const answer = await (await ask(`/pictures?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file })).json();
    const levels = new Uint8Array(await (await ask(`/pictures/${answer.key}/levels`)).arrayBuffer());
    if (number !== newest) return;
    await show({ ...answer, levels });
    say(`${file.name}: done.${more}`);
  } catch (error) {
    if (number === newest) say(error.message, true);
  }
}

async function show(picture) {
  const counts = new Float64Array(100);
  for (const level of picture.levels) counts[level]++;
  shown = { ...picture, counts };
  find("name").textContent = `${picture.name} (${picture.width} x ${picture.height} pixels)`;
  find("picture-note").textContent = picture.note;
  find("picture").src = `/pictures/${picture.key}/picture.png`;
  find("overlay").width = picture.width;
  find("overlay").height = picture.height;
  find("result").hidden = find("view").hidden = false;
  await find("picture").decode().catch(() => {});
  draw();
}

function confluence(threshold) {
  let covered = 0;
  for (let level = threshold; level < 100; level++) covered += shown.counts[level];
  return covered / shown.levels.length;
}

// Areas of connected pixels, corners included: the stretches of each row, joined with those of the row above.
function countComponents({ levels, width, height }, threshold) {
  let count = 0;
  let above = [];
  const parents = [];
  const root = (each) => {
    while (parents[each] !== each) each = parents[each] = parents[parents[each]];
    return each;
  };
  for (let row = 0; row < height; row++) {
    const here = [];
    let next = 0;
    for (let x = 0; x < width; x++) {
      if (levels[row * width + x] < threshold) continue;
      const start = x;
      while (x < width && levels[row * width + x] >= threshold) x++;
      const name = parents.length;
      parents.push(name);
      count++;
      while (next < above.length && above[next][1] < start) next++;
      for (let other = next; other < above.length && above[other][0] <= x; other++) {
        const [one, two] = [root(above[other][2]), root(name)];
        if (one !== two) {
          parents[one] = two;
          count--;
        }
      }
      here.push([start, x, name]);
    }
    above = here;
  }
  return count;
}

function paint(threshold) {
  const { levels, width, height } = shown;
  const thickness = Math.max(1, Math.round(Math.max(width, height) / 1000));
  const image = new ImageData(width, height);
  const withOutline = find("show-outline").checked;
  const alpha = find("show-mask").checked ? TINT_ALPHA : 0;
  const outside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && levels[y * width + x] < threshold;
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++, place++) {
      if (levels[place] < threshold) continue;
      const isEdge =
        withOutline &&
        (outside(x - thickness, y) || outside(x + thickness, y) || outside(x, y - thickness) || outside(x, y + thickness));
      image.data.set(OUTLINE, 4 * place);
      image.data[4 * place + 3] = isEdge ? 255 : alpha;
    }
  }
  find("overlay").getContext("2d").putImageData(image, 0, 0);
}

function draw() {
  const threshold = Number(find("threshold").value);
  find("threshold-value").textContent = (threshold / 100).toFixed(2);
  if (!shown) return;
  find("confluence").textContent = `${(100 * confluence(threshold)).toFixed(1)} %`;
  find("components").textContent = countComponents(shown, threshold);
  find("download").href = `/pictures/${shown.key}/mask.png?threshold=${threshold}`;
  paint(threshold);
}

function drawSoon() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(draw);
}

find("file").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // the same file can be chosen again
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    find("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", () => find("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  const entry = event.dataTransfer.items[0]?.webkitGetAsEntry?.();
  if (entry?.isDirectory) {
    newest++;
    say(`${entry.name}: is a folder; drop one image, or use glioma-dist predict, which takes folders`, true);
    return;
  }
  take([...event.dataTransfer.files]);
});
for (const id of ["threshold", "show-outline", "show-mask"]) find(id).addEventListener("input", drawSoon);
ask("/settings").then(async (response) => (settings = await response.json())).catch((error) => say(error.message, true));
