// The explorer page: choose a question and an estimator, see the sentences. The data lies in the page (clif_kit/explorer.py says
// what it holds). Needs explorer_parts.js; nothing is asked of a server, so that the page works from disk too.
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const known = new Set(data.vocabulary);
  const { make, sign, number, level, link } = explorerParts;
  const ROLES = { x: "X", y: "Y", a: "A", b: "B", word: "Asked about" };

  // --- one sentence ---

  function words(text, parts) { // each word with its part; a word that the model does not know has none
    let place = 0;
    return text.split(" ").map((word) => (known.has(word) ? { word, part: parts[place++] || 0 } : { word, part: null }));
  }

  function carriedBy(list) { // as in clif_kit/explorer.py
    const sums = new Map();
    for (const { word, part } of list) if (part !== null) sums.set(word, (sums.get(word) || 0) + part);
    const total = [...sums.values()].reduce((sum, part) => sum + Math.abs(part), 0) || 1;
    const largest = [...sums].filter(([, part]) => part).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 3);
    return largest.map(([word, part]) => `${word} ${sign(part)}${Math.round((100 * Math.abs(part)) / total)}\u00a0%`).join(", ");
  }

  function wordSpan({ word, part }, largest, asked) {
    const classes = asked.has(word) ? ["asked"] : [];
    const strength = part === null ? 0 : level(part, largest);
    if (part === null) classes.push("unknown");
    if (strength) classes.push(part > 0 ? "help" : "harm", `${part > 0 ? "help" : "harm"}-${strength}`);
    if (!classes.length) return word;
    return make("span", { class: classes.join(" "), ...(strength ? { title: `${word}: ${number(part)}` } : {}) }, word);
  }

  function item([index, score, parts], largest, asked, longest) {
    const [article, text] = data.sentences[index];
    const list = words(text, parts), title = data.articles[article];
    const shown = list.flatMap((one, k) => (k ? [" ", wordSpan(one, largest, asked)] : [wordSpan(one, largest, asked)]));
    const bar = make("span", { class: "bar" });
    bar.style.width = `${Math.max(2, (100 * Math.abs(score)) / longest)}%`;
    return make("li", {},
      make("p", { class: "head" }, make("span", { class: "score" }, number(score)), make("span", { class: "track", "aria-hidden": "true" }, bar),
        link(title)),
      make("p", { class: "text" }, ...shown),
      make("p", { class: "note" }, `Carried by ${carriedBy(list)}`));
  }

  // --- one list ---

  function listOf(question, method, end, count) {
    const { rows, predicted, trained } = question.lists[method][end], kind = data.kinds[question.kind];
    const [name, without] = kind.ends[end], all = rows.length;
    const heading = make("h3", {}, `${name}: without them ${without}`);
    if (!all) return make("section", { class: end }, heading, make("p", {}, "No sentence scores on this side."));
    const guess = data.methods[method].scaled ? `predicted ${number(predicted)}, ` : "";
    const together = `Change of ${kind.loss} when all ${all} of this list leave together: ${guess}trained again ${number(trained)}.`;
    const asked = new Set(Object.values(question.words).flat());
    const largest = Math.max(...rows.flatMap(([, , parts]) => parts.map(Math.abs)));
    const items = rows.slice(0, count).map((row) => item(row, largest, asked, Math.abs(rows[0][1])));
    return make("section", { class: end }, heading, make("p", { class: "together" }, together), make("ol", { role: "list" }, ...items));
  }

  function agreement(question, method) { // of two estimators, in sentences that both list at the same end
    const listed = (name) => ["high", "low"].flatMap((end) => question.lists[name][end].rows.map(([index]) => end + index));
    const mine = new Set(listed(method));
    const shared = Object.keys(data.methods).filter((name) => name !== method)
      .map((name) => `${listed(name).filter((one) => mine.has(one)).length} of them are on the list of the ${lower(data.methods[name].title)}`);
    return `This estimator lists ${mine.size} sentences; ${shared.join(", ")}.`;
  }

  const lower = (title) => title[0].toLowerCase() + title.slice(1);

  // --- the form ---

  function questionMenu() {
    const menu = make("select", { id: "explorer-question" });
    for (const [kind, { group }] of Object.entries(data.kinds)) {
      const mine = Object.entries(data.questions).filter(([, question]) => question.kind === kind);
      if (mine.length) menu.append(make("optgroup", { label: group }, ...mine.map(([name, { title }]) => make("option", { value: name }, title))));
    }
    return make("div", { class: "field" }, make("label", { for: "explorer-question" }, "Question"), menu);
  }

  function methodChoice() {
    const choices = Object.entries(data.methods).map(([name, { title }], k) =>
      make("label", {}, make("input", { type: "radio", name: "method", value: name, ...(k ? {} : { checked: "" }) }), title));
    return make("fieldset", {}, make("legend", {}, "Estimator"), make("div", { class: "choices" }, ...choices), make("p", { class: "note", id: "explorer-note" }));
  }

  function countMenu() {
    const options = [5, 10, 20].map((count) => make("option", { value: count }, count));
    return make("div", { class: "field" }, make("label", { for: "explorer-count" }, "Sentences at either end"),
      make("select", { id: "explorer-count", class: "short" }, ...options));
  }

  function legend() {
    const sample = (kind, said) => make("span", {}, make("span", { class: `${kind} ${kind}-2` }, "word"), " ", make("span", { class: `${kind} ${kind}-4` }, "word"), ` ${said}`);
    return make("p", { class: "legend" }, sample("help", "helpful part"), sample("harm", "harmful part"),
      make("span", {}, make("span", { class: "asked" }, "word"), " of the question"), make("span", {}, make("span", { class: "unknown" }, "word"), " the model never saw"));
  }

  const root = document.getElementById("explorer");
  const form = make("form", { "aria-label": "What to show" }, questionMenu(), methodChoice(), countMenu());
  const about = make("div", { class: "about", role: "status" }), lists = make("div");

  function show() {
    const question = data.questions[form.querySelector("#explorer-question").value];
    const method = form.elements.method.value, count = Number(form.querySelector("#explorer-count").value);
    form.querySelector("#explorer-note").textContent = data.methods[method].note;
    const roles = Object.entries(question.words).map(([role, list]) => `${ROLES[role]}: ${list.join(" ")}`).join(" · ");
    about.replaceChildren(make("p", {}, make("strong", {}, question.state), ". ", agreement(question, method)), make("p", { class: "note" }, roles));
    lists.replaceChildren(...["high", "low"].map((end) => listOf(question, method, end, count)));
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", show);
  root.replaceChildren(form, about, legend(), lists);
  show();
})();
