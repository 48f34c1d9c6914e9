"""A window of headless Chromium and the checks of tests/test_browser.py: a window in, a list of faults out."""

import contextlib
import functools
import importlib.util
import itertools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page
from playwright.sync_api import TimeoutError as TooLate

INSIDE = Path(__file__).with_name("browser_checks.js")
AXE = importlib.util.find_spec("axe_playwright_python")
COLOURS = ["color-contrast", "link-in-text-block"]  # the rules of axe that a theme can break and a width cannot


class Window:
    """A browser page of one theme and width, with a diary of what went wrong since ``open``."""

    def __init__(self, browser: Browser, theme: str, width: int):
        self.theme, self.width, self.home, self.requests, self.said = theme, width, "", {}, []
        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
        choice = f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
        context.add_init_script(f"try {{ {choice} }} catch {{}}")  # about:blank has no storage
        context.add_init_script(path=INSIDE)
        self.page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("request", lambda request: self._note(request.url, self._is_away(request.url), "not from here"))
        self.page.on("requestfailed", lambda request: self._note(request.url, True, f"failed, {request.failure}"))
        self.page.on("response", lambda answer: self._note(answer.url, answer.status >= 400, f"status {answer.status}"))
        self.page.on("pageerror", lambda error: self.said.append(f"page error: {error}"))
        self.page.on("console", self._listen)

    def _note(self, url: str, is_fault: bool, fault: str) -> None:
        if is_fault:
            self.requests.setdefault(url, fault)  # the first is the cause, others follow from it

    def _listen(self, message) -> None:
        echo = message.text.startswith("Failed to load resource")  # the request's own fault names the address
        if message.type == "error" and not echo:
            self.said.append(f"console: {message.text}")

    def _is_away(self, url: str) -> bool:
        parts, home = urlsplit(url), urlsplit(self.home)
        return parts.scheme not in ("data", "blob") and (parts.scheme, parts.netloc) != (home.scheme, home.netloc)

    def open(self, url: str) -> None:
        """Load a page and wait for its fonts, images and formulas."""
        self.home, self.requests, self.said = url, {}, []
        self.page.goto(url, wait_until="commit")
        if url.endswith("/index.html") and not url.endswith("/book/index.html"):
            self.page.wait_for_url("**/book/index.html")  # the front door
        self.page.wait_for_load_state("load")
        self.page.evaluate("clif.settle()")


# --- checks of a page as it stands ---


def requests(window: Window) -> list[str]:
    """What failed to load, and what was asked of another machine."""
    return [f"{fault}: {url}" for url, fault in window.requests.items()]


def messages(window: Window) -> list[str]:
    """Errors that scripts raised or wrote to the console."""
    return list(window.said)


def pictures(window: Window) -> list[str]:
    """Images whose alternative text says nothing."""
    name = re.compile(r"[0-9a-f]{32,}|\.(png|svg|jpe?g|gif|webp)$", re.I)
    found = window.page.evaluate("clif.pictures()")
    return [f"alt={alt!r}: {src}" for src, alt in found if not alt or name.search(alt)]


def layout(window: Window) -> list[str]:
    """Sideways scrolling of the page, and content that a box cuts off; a box that scrolls by itself is fine."""
    return window.page.evaluate("clif.layout()")


def theme(window: Window) -> list[str]:
    """A page that is not in the theme asked for."""
    name, brightness = window.page.evaluate("clif.theme()")
    right = name == window.theme and (brightness > 128) == (name == "light")
    return [] if right else [f"asked for {window.theme}, got {name} on a background of brightness {brightness:.0f}"]


def maths(window: Window) -> list[str]:
    """Formulas that MathJax did not typeset."""
    return window.page.evaluate("clif.maths()")


def axe(window: Window) -> list[str]:
    """Violations of axe-core's rules: each rule where it may come out differently, since a page takes seconds."""
    options, narrow = {"resultTypes": ["violations"]}, window.width < 600
    if window.theme == "dark" and narrow:
        return []  # the colours of the dark wide window in the boxes of the light narrow one
    if window.theme == "dark":
        options["runOnly"] = COLOURS
    elif narrow:
        options["rules"] = {rule: {"enabled": False} for rule in COLOURS}
    window.page.evaluate("clif.thin()")
    window.page.evaluate(axe_source())
    return window.page.evaluate("(options) => clif.axe(options)", options)


CHECKS = (requests, messages, pictures, layout, theme, maths, axe)


def all_faults(window: Window) -> list[str]:
    """The faults of a page with its folded boxes open, each with the name of its check."""
    window.page.evaluate("clif.unfold()")
    return [f"{check.__name__}: {fault}" for check in CHECKS for fault in check(window)]


# --- checks that act as a reader does ---


def keyboard(window: Window) -> list[str]:
    """Walk the page by Tab, opening each folded box by Enter; a long page without such boxes not to its end."""
    faults, menu, shut = [], False, window.page.locator("main details:not([open]), main .toggle-hidden")
    for steps in itertools.count():
        if steps > 120 and shut.count() == 0:
            break
        window.page.keyboard.press("Tab")
        stop = window.page.evaluate("clif.focus()")
        if stop["end"]:
            break
        menu |= stop["menu"]
        if not stop["shown"]:
            faults.append(f"focus is invisible: {stop['html']}")
        if stop["shut"]:
            window.page.keyboard.press("Enter")
            faults += [] if becomes(window.page, "clif.contentIsVisible()") else [f"stays shut: {stop['html']}"]
    return faults + ["Tab reaches no menu"] * (not menu) + ["Tab misses a folded box"] * bool(shut.count())


def telephone_menu(window: Window) -> list[str]:
    """The menu hides behind a button: Enter opens it, Tab goes into it."""
    for _ in range(20):
        window.page.keyboard.press("Tab")
        if window.page.evaluate("clif.focus()")["button"]:
            break
    else:
        return ["Tab does not reach the menu's button"]
    window.page.keyboard.press("Enter")
    opened = becomes(window.page, "document.querySelector('dialog[open] .bd-links')?.checkVisibility()")
    window.page.keyboard.press("Tab")
    inside = becomes(window.page, "document.activeElement.closest('dialog[open]') !== null")
    return ["Enter does not open the menu"] * (not opened) + ["Tab does not enter the menu"] * (not inside)


def search(window: Window, word: str) -> list[str]:
    """Ask the theme's search box for a word."""
    window.page.locator(".search-button__button:visible").first.click()
    window.page.keyboard.type(word)
    window.page.keyboard.press("Enter")
    window.page.wait_for_url(f"**/search.html?q={word}")
    results, verdict = "document.querySelector('#search-results ul.search li a')", "#search-results .search-summary"
    becomes(window.page, f"{results} || document.querySelector('{verdict}')?.textContent.includes('match')", 15_000)
    window.page.wait_for_load_state("networkidle")  # excerpts are fetched page by page; leaving earlier breaks that off
    return [] if window.page.evaluate(f"{results} !== null") else [f"no result for {word!r}"]


def becomes(page: Page, condition: str, patience: int = 5000) -> bool:
    """Whether a condition holds within some milliseconds: boxes fade in, menus slide, indexes load."""
    with contextlib.suppress(TooLate):
        page.wait_for_function(condition, timeout=patience)
        return True
    return False


# --- what the window looks at ---


@functools.cache
def axe_source() -> str:
    """The script of axe-core."""
    return Path(AXE.submodule_search_locations[0], "axe.min.js").read_text("utf8")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[dict[str, str]]:
    """The addresses of a folder, by transport."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"http": f"http://127.0.0.1:{server.server_port}", "file": folder.as_uri()}
    server.shutdown()
