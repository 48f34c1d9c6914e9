"""Every page of the built book in headless Chromium, as a reader gets it, by http and from disk.

``CLIF_BOOK_HTML`` names the folder of the book's index.html. The last tests break a page and see it found out.
"""

import functools
import os
import shutil
from pathlib import Path

import browser
import pytest
from playwright.sync_api import sync_playwright

HTML = Path(os.environ.get("CLIF_BOOK_HTML") or ".").resolve()
CHROMIUM = os.environ.get("CLIF_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not os.environ.get("CLIF_BOOK_HTML"),
    reason="CLIF_BOOK_HTML is not set: `make test-browser` builds the book and sets it",
)
VIEWS = [("http", "light", 1280), ("http", "dark", 1280), ("http", "light", 390), ("file", "dark", 390)]


def pages():
    """Each page of the book, by its path from the book's folder."""
    if not os.environ.get("CLIF_BOOK_HTML"):
        return []
    names = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))
    return [name for name in names if not name.startswith(("_static/", "_sources/", "_downloads/"))]


def give_up(what):
    """One line; an error in CI, where nobody reads why a test was skipped."""
    if os.environ.get("CI") == "true":
        pytest.exit(what, returncode=1)
    pytest.skip(what)


@pytest.fixture(scope="module")
def window():
    """A function (theme, width) -> Window: one browser, each window used again."""
    if not CHROMIUM or not Path(CHROMIUM).exists():
        give_up("the browser test needs Chromium: apt-get install chromium, or CLIF_CHROMIUM=/path/to/it")
    if not browser.AXE:
        give_up("the browser test needs axe-core: make test-browser installs tests/browser_requirements.txt")
    with sync_playwright() as playwright:
        quiet = ["--disable-gpu", "--disable-quic", "--disable-sync"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield functools.cache(functools.partial(browser.Window, chromium))
        chromium.close()


@pytest.fixture(scope="module")
def site():
    with browser.serve(HTML) as addresses:
        yield addresses


def test_there_are_pages():
    assert {"index.html", "search.html", "book/index.html"} < set(pages())


@pytest.mark.parametrize(("transport", "theme", "width"), VIEWS)
@pytest.mark.parametrize("name", pages())
def test_a_page_has_no_faults(window, site, name, transport, theme, width):
    view = window(theme, width)
    view.open(f"{site[transport]}/{name}")
    faults = browser.all_faults(view)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", [name for name in pages() if name != "index.html"])  # that one only leads to the first
def test_the_keyboard_reaches_everything(window, site, name):
    view = window("light", 1280)
    view.open(f"{site['http']}/{name}")
    faults = browser.keyboard(view)
    assert not faults, "\n".join(faults)


def test_the_menu_of_a_telephone_opens_by_keyboard(window, site):
    view = window("light", 390)
    view.open(f"{site['http']}/book/index.html")
    assert browser.telephone_menu(view) == []


@pytest.mark.parametrize("transport", ["http", "file"])  # the index is a script, so that search works from disk too
def test_search_finds_a_word_and_only_a_word_of_the_book(window, site, transport):
    view = window("light", 1280)
    for word, faults in (("damping", []), ("xyzzyplugh", ["no result for 'xyzzyplugh'"])):
        view.open(f"{site[transport]}/book/index.html")
        assert browser.search(view, word) == faults
        assert browser.requests(view) + browser.messages(view) == []


# --- the checks can fail ---

TOP = '<article class="bd-article">'
WIDE = "<div><table><tr>" + "<td>immovable</td>" * 40 + "</tr></table></div>"
MATHJAX = '<script defer="defer" src="../_static/vendor/mathjax'
BREAKS = {  # what: (text of the page, what comes in its place, the checks that must speak and a word of theirs)
    "nothing": (TOP, TOP, {}),
    "external script": (TOP, TOP + '<script src="https://cdn.invalid/x.js"></script>', {"requests": "not from here"}),
    "missing image": (TOP, TOP + '<img src="gone.png" alt="A curve">', {"requests": "status 404"}),
    "console error": (TOP, TOP + "<script>console.error('ouch')</script>", {"messages": "console: ouch"}),
    "page error": (TOP, TOP + "<script>throw Error('ouch')</script>", {"messages": "page error: "}),
    "no alt text": (TOP, TOP + '<img src="../dot.svg">', {"pictures": "alt=''", "axe": "image-alt"}),
    "alt text is a file name": (TOP, TOP + '<img src="../dot.svg" alt="dot.svg">', {"pictures": "alt='dot.svg'"}),
    "wide table": (TOP, TOP + WIDE, {"layout": "scrolls sideways"}),
    "cut-off table": (TOP, f'{TOP}<div style="overflow: hidden">{WIDE}</div>', {"layout": "cut off: <table"}),
    "pale text": (TOP, TOP + '<p style="color: #bbb; background: #fff">pale</p>', {"axe": "color-contrast"}),
    "theme ignored": ("</head>", "<style>body { background: #fff !important }</style></head>", {"theme": "255"}),
    "no MathJax": (MATHJAX, MATHJAX.replace("<script", '<script type="text/plain"'), {"maths": "not typeset"}),
    "raw TeX": (TOP, TOP + r"<p class='mathjax_ignore'>\(x\)</p>", {"maths": r"raw: \(x"}),
}
WINDOWS = {"pale text": ("light", 1280), "theme ignored": ("dark", 1280)}  # else a telephone


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A function (old, new) -> address of a copy of a small page in which the one text stands for the other."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "book").mkdir()
    (folder / "_static").symlink_to(HTML / "_static")
    (folder / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    text = (HTML / "book" / "notation.html").read_text("utf8")

    def broken(old, new):
        assert old in text
        (folder / "book" / "page.html").write_text(text.replace(old, new, 1), "utf8")
        return f"{addresses['http']}/book/page.html"

    with browser.serve(folder) as addresses:
        yield broken


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_page_is_found_out(window, copy, name):
    old, new, expected = BREAKS[name]
    view = window(*WINDOWS.get(name, ("light", 390)))
    view.open(copy(old, new))
    faults = browser.all_faults(view)
    assert {fault.split(":")[0] for fault in faults} - {"axe"} == set(expected) - {"axe"}, faults
    for check, words in expected.items():
        assert any(fault.startswith(f"{check}: ") and words in fault for fault in faults), faults
    assert faults or not expected


@pytest.mark.parametrize(
    ("new", "fault"),
    [
        ("<style>* { outline: 0 !important; box-shadow: none !important }</style></head>", "focus is invisible"),
        ("<style>.bd-sidebar-primary { visibility: hidden }</style></head>", "Tab reaches no menu"),
    ],
)
def test_a_page_without_a_way_for_the_keyboard_is_found_out(window, copy, new, fault):
    view = window("light", 1280)
    view.open(copy("</head>", new))
    assert any(found.startswith(fault) for found in browser.keyboard(view))
