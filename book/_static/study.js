// The classroom study: one question after the other, a score, and the answers as a file. Nothing is sent anywhere.
(() => {
  const root = document.getElementById("explorer");
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const answers = [];
  let began = 0;

  function make(tag, attributes, ...children) {
    const part = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) part.setAttribute(name, value);
    part.append(...children);
    return part;
  }

  const item = (question, value, label) =>
    question.what === "images" ? make("img", { src: value, alt: label, width: 72, height: 72 }) : make("span", { class: "word" }, value);

  // Each student gets an order of their own; only the numbers of the questions are kept.
  const order = data.questions.map((question) => [Math.random(), question]).sort((a, b) => a[0] - b[0]).map(([, question]) => question);

  function show(place) {
    const question = order[place];
    const kind = data.kinds[question.kind];
    const what = question.what === "images" ? "pictures" : "words";
    const panel = make("ul", { class: `panel ${question.what}`, "aria-label": `The panel: ${question.panel.length} ${what}` });
    question.panel.forEach((value, k) => panel.append(make("li", {}, item(question, value, `Handwritten digit, ${k + 1} of the panel`))));
    const form = make("form", {});
    const choices = make("div", { class: "choices" });
    kind.answers.forEach((answer, k) => {
      const input = make("input", { type: "radio", name: "answer", value: answer, required: "" });
      const text = question.kind === "pattern" ? (answer === "yes" ? "Yes, a pattern" : "No, a mixture") : `${answer.toUpperCase()}: `;
      const label = make("label", {}, input, make("span", {}, text));
      if (question.kind === "pair") label.append(item(question, question.choices[k], `Handwritten digit, choice ${answer.toUpperCase()}`));
      choices.append(label);
    });
    const title = make("h3", { tabindex: "-1" }, `Question ${place + 1} of ${order.length}`);
    form.append(make("fieldset", {}, make("legend", {}, kind.question), choices), make("button", { type: "submit" }, "Next"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const answer = new FormData(form).get("answer");
      answers.push({ id: question.id, answer, seconds: Math.round((Date.now() - began) / 100) / 10 });
      if (place + 1 < order.length) show(place + 1);
      else finish();
    });
    const progress = make("progress", { value: place, max: order.length, "aria-label": "Questions answered" });
    root.replaceChildren(title, progress, panel, form);
    began = Date.now();
    title.focus();
  }

  function correct(kind, real) {
    const asked = data.questions.filter((question) => question.kind === kind && question.real === real);
    const hits = asked.filter((question) => answers.find((answer) => answer.id === question.id).answer === question.right);
    return `${hits.length} of ${asked.length}`;
  }

  function file(name, type, content) {
    const button = make("button", { type: "button" }, `Download ${name}`);
    button.addEventListener("click", () => {
      const address = URL.createObjectURL(new Blob([content], { type }));
      const link = make("a", { href: address, download: name });
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(address), 1000);
    });
    return button;
  }

  function finish() {
    const title = make("h3", { tabindex: "-1" }, "Your score");
    const rows = Object.entries(data.kinds).map(([kind, about]) =>
      make("tr", {}, make("th", { scope: "row" }, about.question), make("td", {}, correct(kind, true)), make("td", {}, correct(kind, false))));
    const head = ["question", "real panels", "shuffled panels"].map((name) => make("th", { scope: "col" }, name));
    const table = make("table", {}, make("caption", {}, "Correct answers"), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
    const note = "A shuffled panel has no pattern, so the right answer to the first question is no; for the second, one of two is right by chance.";
    const whole = { format: "clif-study-1", study: data.study, answers };
    const lines = answers.map((row) => [whole.format, whole.study, row.id, row.answer, row.seconds].join(","));
    const csv = ["format,study,id,answer,seconds", ...lines, ""].join("\n");
    root.replaceChildren(title, table, make("p", { class: "note" }, note), make("p", { class: "files" },
      file("answers.json", "application/json", JSON.stringify(whole, null, 1)), " ", file("answers.csv", "text/csv", csv)),
      make("p", { class: "note" }, "Hand in one of the two files. It holds your answers and how long each took, no name."));
    title.focus();
  }

  const start = make("button", { type: "button" }, "Begin");
  start.addEventListener("click", () => show(0));
  root.replaceChildren(make("p", {}, `There are ${order.length} questions. Nothing leaves your machine.`), start);
})();
