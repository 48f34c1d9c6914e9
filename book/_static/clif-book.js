// Small mends that make the theme usable by keyboard and screen reader. Nothing here asks another server for anything.

// A browser forbids pages on disk to read each other, so a search there shows titles without excerpts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// A box that scrolls must be reachable by keyboard: give it a tab stop, but only while it really scrolls.
function markScrollers() {
  const boxes = "figure, div.math, mjx-container, .pst-scrollable-table-container, .output, pre";
  document.querySelectorAll(boxes.split(", ").map((box) => ".bd-article " + box).join(", ")).forEach((box) => {
    const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    if (scrolls && box.clientWidth > 0) box.tabIndex = 0;
    else if (box.tabIndex === 0) box.removeAttribute("tabindex");
  });
}

function nameTheParts() {
  const menu = document.querySelector(".bd-sidebar-primary");
  if (menu) { menu.setAttribute("role", "region"); menu.setAttribute("aria-label", "Menu of the book"); }
  document.querySelectorAll(".search-button-field").forEach((button) => button.removeAttribute("aria-label"));
  document.querySelectorAll(".theme-switch-button").forEach((button) => {
    const hideIcons = () => button.querySelectorAll("svg").forEach((icon) => {
      icon.removeAttribute("aria-labelledby");
      icon.setAttribute("aria-hidden", "true");
      icon.querySelector("title")?.remove(); // the button has a name of its own
    });
    hideIcons();
    new MutationObserver(hideIcons).observe(button, { childList: true }); // icons are drawn when their font arrives
  });
}

function markWideFigures() {
  document.querySelectorAll(".bd-article figure .cell_output img, .bd-article .cell_output figure img").forEach((image) => {
    image.classList.toggle("wide", image.naturalWidth > 1.8 * image.naturalHeight);
  });
}

window.addEventListener("load", () => {
  markWideFigures();
  nameTheParts();
  const mathIsSet = window.MathJax && MathJax.startup && MathJax.startup.promise;
  Promise.resolve(mathIsSet).then(markScrollers);
});
window.addEventListener("resize", markScrollers);
document.addEventListener("toggle", markScrollers, true); // an opened drop-down shows new boxes
