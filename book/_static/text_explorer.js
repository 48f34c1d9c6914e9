// The second explorer page: choose a test sentence, see which training sentences each method names, side by side, and what happened
// when they left. The data lies in the page (clif_kit/text_explorer.py says what it holds). Needs explorer_parts.js.
(() => {
   const data = JSON.parse(document.getElementById("explorer-data").textContent);
   const { make, sign, number, level, link } = explorerParts;
  const { settings, classes, methods, ends } = data;

  const mean = (list) => list.reduce((sum, x) => sum + x, 0) / list.length;
  const change = (x) => (Math.round(1000 * x) === 0 ? "0.000" : sign(x) + Math.abs(x).toFixed(3)); // of a probability
  const range = ([value, low, high]) => `${change(value)} (${change(low)}\u00a0to\u00a0${change(high)})`;

  // --- one sentence ---

  function marked(word, part, total, largest) { // the number: the word's share of the sum of all parts' sizes, in per cent
    const share = Math.round((100 * Math.abs(part)) / total);
    if (!share) return word;
    const strength = Math.max(1, level(part, largest)), kind = part > 0 ? "help" : "harm";
    return make("span", { class: `${kind} ${kind}-${strength}`, title: `${word}: ${number(part)}` }, word, make("small", {}, `${sign(part)}${share}`));
  }

  function sentence(text, read, parts, largest) { // words beyond those that the model read are grey, if it is the model's score
    const total = parts.reduce((sum, part) => sum + Math.abs(part), 0) || 1;
    const list = text.split(" ").map((word, k) => (k >= read ? make("span", { class: "unknown" }, word) : marked(word, parts[k + 1] || 0, total, largest)));
    return list.flatMap((one, k) => (k ? [" ", one] : [one]));
  }

  function item([index, score, parts], method, largest) {
    const [article, label, text, read] = data.texts[index], kind = methods[method].parts;
    const shown = make("li", {}, make("p", { class: "head" }, ...(score === null ? [] : [make("span", { class: "score" }, number(score))]),
      make("span", { class: "topic" }, classes[label]), link(article)));
    shown.append(make("p", { class: "text" }, ...sentence(text, kind === "words" ? Infinity : read, parts, largest)));
    if (kind === "tokens") {
      const total = parts.reduce((sum, part) => sum + Math.abs(part), 0) || 1, part = parts[0] || 0;
      const share = Math.round((100 * Math.abs(part)) / total);
      shown.append(make("p", { class: "note special" }, `${settings.special}: ${share ? sign(part) : ""}${share}\u00a0% (${number(part)})`));
    }
    return shown;
  }

  // --- one list, and the same end of all methods ---

  function listOf(question, method, end, count) {
    const { rows, trained } = question.lists[method][end], { title } = methods[method], scored = rows.some(([, score]) => score !== null);
    const largest = Math.max(0, ...rows.flatMap(([, , parts]) => parts.map(Math.abs)));
    const from = scored ? "" : ` Sentences of ${ends[end].drawn}.`;
    return make("section", { class: `list ${end} ${scored ? "method" : "control"}`, "data-method": method, "aria-label": `${title}, ${ends[end].title}` },
      make("h4", {}, title),
      make("p", { class: "together" }, `Trained again without these ${rows.length}: `, make("strong", {}, change(mean(trained))), make("br"),
        make("span", { class: "note" }, `Each seed: ${trained.map(change).join(", ")}.${from}`)),
      make("ol", { role: "list" }, ...rows.slice(0, count).map((row) => item(row, method, largest))));
  }

  function endOf(question, end, count) {
    const { title, predicted } = ends[end], topic = classes[question.text[1]];
    return make("section", { "aria-label": title }, make("h3", {}, title),
      make("p", { class: "note" }, `The methods predict: without them p(${topic}) ${predicted}. The control predicts nothing.`),
      make("div", { class: "columns" }, ...Object.keys(methods).map((method) => listOf(question, method, end, count))));
  }

  // --- all test sentences together ---

  function overall() {
    const n = data.questions.length, cells = ["", ...Object.values(ends).map(({ title }) => `${title} left`), "Right way, beyond the control"];
    const rows = Object.entries(data.summary).map(([method, { high, low, gain }]) => make("tr", {}, make("th", { scope: "row" }, methods[method].title),
      ...[high, low, gain].map((one) => make("td", {}, one ? range(one) : "does not apply"))));
    return make("div", { class: "pst-scrollable-table-container" }, make("table", { class: "overall" },
      make("caption", {}, `All ${n} test sentences, ${settings.seeds} seeds each: mean change of the true topic's probability, with its 95 % interval`),
      make("thead", {}, make("tr", {}, ...cells.map((cell) => (cell ? make("th", { scope: "col" }, cell) : make("td", {}))))), make("tbody", {}, ...rows)));
  }

  // --- the form ---

  function questionMenu() {
    const menu = make("select", { id: "explorer-question" });
    classes.forEach((topic, label) => {
      const mine = data.questions.map(({ text }, k) => ({ text, k })).filter(({ text }) => text[1] === label);
      const brief = (text) => (text.length > 70 ? `${text.slice(0, text.lastIndexOf(" ", 70))} …` : text);
      if (mine.length) menu.append(make("optgroup", { label: topic }, ...mine.map(({ text, k }) => make("option", { value: k }, brief(text[2])))));
    });
    return make("div", { class: "field" }, make("label", { for: "explorer-question" }, "Test sentence, by its true topic"), menu);
  }

  function countMenu() {
    const options = [3, 5, 10, 20].filter((count) => count <= Math.max(3, settings.k)).map((count) => make("option", { value: count }, count));
    return make("div", { class: "field" }, make("label", { for: "explorer-count" }, "Rows of each list"), make("select", { id: "explorer-count", class: "short" }, ...options));
  }

  function legend() {
    const sample = (kind, share, said) => make("span", {}, make("span", { class: `${kind} ${kind}-3` }, "word", make("small", {}, share)), ` ${said}`);
    return make("p", { class: "legend" }, sample("help", "+40", "a part that helps, per cent of all parts' sizes"), sample("harm", "−25", "a part that harms"),
      make("span", {}, make("span", { class: "unknown" }, "word"), " cut off: the model never read it"));
  }

  const notes = () => make("dl", { class: "methods" }, ...Object.values(methods).flatMap(({ title, note }) => [make("dt", {}, title), make("dd", {}, note)]));

  const root = document.getElementById("explorer");
  const form = make("form", { "aria-label": "What to show" }, questionMenu(), countMenu());
  const about = make("div", { class: "about", role: "status" }), lists = make("div");

  function show() {
    const question = data.questions[Number(form.querySelector("#explorer-question").value)], count = Number(form.querySelector("#explorer-count").value);
    const [article, label, text, read] = question.text, before = question.probability;
    about.replaceChildren(
      make("p", { class: "text" }, ...sentence(text, read, [], 0)),
      make("p", {}, `True topic: `, make("strong", {}, classes[label]), `, from `, link(article), `. The scored model says ${classes[question.predicted]}.`),
      make("p", { class: "note" }, `p(${classes[label]}) of ${settings.seeds} models that kept all ${settings.train} training sentences: `
        + `${before.map((p) => p.toFixed(3)).join(", ")}; the first is the scored one. ${settings.special} carry ${Math.round(100 * question.special)}\u00a0% of `
        + `TR-WE's mass over all training sentences.`));
    lists.replaceChildren(...Object.keys(ends).map((end) => endOf(question, end, count)));
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", show);
  form.querySelector("#explorer-question").value = "0"; // as in the table for readers without JavaScript
  root.replaceChildren(form, about, notes(), legend(), lists, overall());
  show();
})();
