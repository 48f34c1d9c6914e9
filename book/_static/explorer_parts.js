// What both explorer pages are made of. They are loaded after this file; nothing is asked of a server.
const explorerParts = (() => {
  const LEVELS = [0.02, 0.1, 0.3, 0.6]; // of the largest part in the list: from here on a word has colour 1, 2, 3, 4

  function make(tag, attributes, ...children) {
    const part = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) part.setAttribute(name, value);
    part.append(...children);
    return part;
  }

  const sign = (x) => (x < 0 ? "−" : "+");

  function number(x) {
    const size = Math.abs(x);
    const digits = size === 0 || size >= 0.001 ? String(Number(size.toPrecision(3))) : size.toExponential(2).replace("-", "−");
    return sign(x) + digits;
  }

  const level = (part, largest) => LEVELS.filter((least) => Math.abs(part) >= least * largest).length;
  const link = (title) => make("a", { href: `https://en.wikipedia.org/wiki/${encodeURIComponent(title.replaceAll(" ", "_"))}` }, title);

  return { make, sign, number, level, link };
})();
