// Just enough of a browser for book/_static/study.js: a student who always takes the first answer. Prints both files.
const fs = require("fs");
const [, , script, dataFile] = process.argv;
const files = {};
class Node {
  constructor(tag) { Object.assign(this, { tag, attributes: {}, children: [], listeners: {} }); }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  append(...parts) { this.children.push(...parts); }
  replaceChildren(...parts) { this.children = parts; }
  addEventListener(name, run) { this.listeners[name] = run; }
  focus() { document.activeElement = this; }
  remove() {}
  click() { if (this.tag === "a") files[this.attributes.download] = blobs[this.attributes.href]; else this.listeners.click(); }
  all(tag) { return this.children.filter((c) => c instanceof Node).flatMap((c) => [...(c.tag === tag ? [c] : []), ...c.all(tag)]); }
  get text() { return this.children.map((c) => (c instanceof Node ? c.text : c)).join(""); }
}
const blobs = {};
const root = new Node("div");
const data = { textContent: fs.readFileSync(dataFile, "utf8") };
global.document = {
  getElementById: (id) => (id === "explorer" ? root : data), createElement: (tag) => new Node(tag), body: new Node("body"), activeElement: null,
};
global.Blob = class { constructor(parts) { this.text = parts.join(""); } };
global.URL = { createObjectURL: (blob) => { const name = `blob:${Object.keys(blobs).length}`; blobs[name] = blob.text; return name; }, revokeObjectURL() {} };
global.FormData = class { constructor(form) { this.form = form; } get() { return this.form.all("input")[0].attributes.value; } };
global.setTimeout = (run) => run();
eval(fs.readFileSync(script, "utf8"));
const seen = { legends: new Set(), images: 0, labelled: true, titles: [] };
root.all("button")[0].click();
for (let form; (form = root.all("form")[0]); ) {
  seen.legends.add(form.all("legend")[0].text);
  seen.images += root.all("img").length;
  seen.labelled &&= root.all("img").every((i) => i.attributes.alt) && form.all("input").every((i) => i.attributes.name && i.attributes.value);
  seen.labelled &&= form.all("label").length === 2 && document.activeElement === root.all("h3")[0];
  seen.titles.push(root.all("h3")[0].text);
  form.listeners.submit({ preventDefault() {} });
}
root.all("button").forEach((button) => button.click());
console.log(JSON.stringify({ files, legends: [...seen.legends], images: seen.images, labelled: seen.labelled, titles: seen.titles, cells: root.all("td").map((c) => c.text) }));
