// What tests/browser.py asks of a page from inside; each returns data or a list of faults.
globalThis.clif = {
  async settle() {
    if (document.querySelector("script[src*=tex-chtml]")) await window.MathJax?.startup?.promise;
    await document.fonts.ready;
    const images = [...document.images];
    images.forEach((image) => { image.loading = "eager"; });
    await Promise.all(images.map((image) => image.decode().catch(() => {}))); // a missing one is the requests' fault
  },

  unfold() {
    document.querySelectorAll("main details").forEach((box) => { box.open = true; });
    document.querySelectorAll("main .toggle-button-hidden").forEach((button) => button.click());
    document.getAnimations().forEach((animation) => animation.finish()); // else axe sees boxes half faded in
    return new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)));
  },

  pictures: () => [...document.images].map((image) => [image.getAttribute("src"), (image.alt || "").trim()]),

  layout() {
    const root = document.documentElement, flow = (box) => getComputedStyle(box).overflowX;
    const width = root.clientWidth, faults = [];
    if (root.scrollWidth > width) faults.push(`scrolls sideways: ${root.scrollWidth} > ${width} px`);
    const parts = "h1, h2, h3, h4, p, li, dt, dd, pre, table, img, svg, figure, mjx-container";
    for (const part of document.querySelectorAll(`main :is(${parts})`)) {
      const place = part.getBoundingClientRect();
      let box = part.parentElement;
      while (box && flow(box) === "visible") box = box.parentElement;
      if (!place.width || (box && /auto|scroll/.test(flow(box)))) continue;
      const edge = box ? box.getBoundingClientRect() : { left: 0, right: width };
      const hides = /hidden|clip/.test(flow(part)) && part.scrollWidth > part.clientWidth + 1;
      const out = place.right > edge.right + 1 || place.left < edge.left - 1;
      if (hides || out) faults.push(`cut off: ${part.outerHTML.slice(0, 80)}`);
    }
    return faults;
  },

  theme() {
    const colour = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).map(Number);
    return [document.documentElement.dataset.theme, (colour[0] + colour[1] + colour[2]) / 3];
  },

  maths() {
    const main = document.querySelector("main"), prose = main.cloneNode(true), start = (part) => part.textContent.slice(0, 60);
    const plain = [...main.querySelectorAll(".math")].filter((formula) => !formula.querySelector("mjx-container"));
    const wrong = [...main.querySelectorAll("mjx-merror")];
    prose.querySelectorAll("pre, code, script, style, .math").forEach((part) => part.remove());
    const raw = prose.textContent.match(/\\[([].{0,40}|\$\$.{0,40}/g) || [];
    return [
      ...plain.map((formula) => `not typeset: ${start(formula)}`),
      ...wrong.map((error) => `MathJax: ${start(error)}`),
      ...raw.map((tex) => `raw: ${tex}`),
    ];
  },

  // axe takes a minute for thousands of equal code words and contents of 600 lines: a few of each kind tell the same.
  thin() {
    document.querySelectorAll("mjx-math").forEach((glyphs) => glyphs.remove()); // hidden from screen readers, no text
    document.querySelectorAll(".page-toc li:nth-child(n+6)").forEach((entry) => entry.remove());
    const seen = new Set(), needed = "a, button, summary, label, th, h1, h2, h3, h4";
    for (const word of document.querySelectorAll("main :is(pre, code, dt) span:not(:has(*))")) {
      if (word.closest(needed)) continue;
      let kind = word.getAttribute("style");
      for (let part = word; part !== document.body; part = part.parentElement) kind += ` ${part.tagName}.${part.className}`;
      if (seen.has(kind)) word.remove();
      seen.add(kind);
    }
  },

  async axe(options) {
    const { violations } = await axe.run(document, options);
    const why = (node) => [...node.any, ...node.all, ...node.none][0].message;
    return violations.flatMap((rule) => rule.nodes.map((node) => `${rule.id}: ${node.target} ${why(node)}`));
  },

  // Where the keyboard is, and whether a reader can see that: the same element must look different without the focus.
  focus() {
    const here = document.activeElement;
    const look = () => [null, "::after"].map((part) => {
      const { outline, boxShadow, backgroundColor } = getComputedStyle(here, part); // a card's ring is its ::after
      return outline + boxShadow + backgroundColor;
    }).join();
    const focused = look();
    here.blur(); // the next Tab still starts from here
    const shown = look() !== focused;
    here.focus();
    const again = !!here.dataset.walked, fold = here.matches("main summary, main .toggle-button");
    here.dataset.walked = "yes";
    return {
      html: here.outerHTML.slice(0, 90), end: again || here === document.body, shown,
      menu: here.matches(".bd-sidebar-primary a"), button: here.matches(".primary-toggle"),
      shut: fold && !here.closest("details[open], .toggle:not(.toggle-hidden)"),
    };
  },

  contentIsVisible() {
    const inside = [...document.activeElement.closest("details, .toggle").children].slice(1);
    const shown = { visibilityProperty: true, opacityProperty: true };
    return inside.some((part) => part.checkVisibility(shown) && part.offsetHeight > 0);
  },
};
