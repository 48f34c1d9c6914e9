"""The built book, as files: what a browser would get. ``CLIF_BOOK_HTML`` names the folder of its index.html."""

import functools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
HTML = Path(os.environ.get("CLIF_BOOK_HTML") or ".")
pytestmark = pytest.mark.skipif(
    not os.environ.get("CLIF_BOOK_HTML"), reason="CLIF_BOOK_HTML is not set: `make test` builds the book and sets it"
)
LOADS = dict.fromkeys(("script", "img", "source", "iframe", "video", "audio", "embed"), "src") | {"object": "data"}
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload"}


class Page(HTMLParser):
    """What a page loads, links to, shows and names."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.images, self.ids, self.inline = [], [], [], set(), []
        self.lang, self.in_script = None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.in_script = tag == "script"
        self.ids |= {attrs["id"]} if attrs.get("id") else set()
        if tag == "html":
            self.lang = attrs.get("lang")
        if attrs.get(LOADS.get(tag, "")):
            self.loads.append(attrs[LOADS[tag]])
        if tag == "link" and LOADED_LINKS & set((attrs.get("rel") or "").split()):
            self.loads.append(attrs["href"])
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag == "img":
            self.images.append(attrs)
        if attrs.get("style"):
            self.inline.append(attrs["style"])

    def handle_endtag(self, _tag):
        self.in_script = False

    def handle_data(self, data):
        if self.in_script:
            self.inline.append(data)


@functools.cache
def pages():
    """Each HTML page of the book, by its path from the book's folder."""
    found = {path.relative_to(HTML).as_posix(): path for path in HTML.rglob("*.html")}
    return {
        name: Page(path.read_text("utf8"))
        for name, path in sorted(found.items())
        if not name.startswith(("_static/", "_sources/", "_downloads/"))
    }


def contents():
    """Documents that _toc.yml lists."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def away(url):
    return bool(urlsplit(url).scheme or url.startswith("//")) and not url.startswith("data:")


def test_each_document_of_the_contents_has_its_page_and_each_chapter_is_in_the_contents():
    assert not [name for name in contents() if f"{name}.html" not in pages()]
    chapters = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert chapters <= set(contents()), f"not in _toc.yml: {chapters - set(contents())}"
    assert "index.html" in pages()


def test_each_named_figure_is_on_its_page():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        figures = [cell.metadata.get("mystnb", {}).get("figure", {}) for cell in nbformat.read(path, 4).cells]
        named = {figure["name"] for figure in figures if figure.get("name")}
        missing = named - pages()[f"notebooks/{path.stem}.html"].ids
        assert not missing, f"{path.stem}: {missing}"


def test_nothing_is_loaded_from_another_server():
    for name, page in pages().items():
        assert not [url for url in page.loads if away(url)], name
        text = "\n".join(page.inline)
        assert not re.search(r"""(?:import\s*\(?|url\(|fetch\(|\.src\s*=)\s*['"]?(?:https?:)?//""", text), name
        assert "unpkg.com" not in text, f"{name}: thebe is back"


def test_style_sheets_load_nothing_from_another_server():
    for path in HTML.glob("_static/**/*.css"):
        text = path.read_text("utf8", errors="replace")
        assert not re.search(r"""(?:url\(\s*|@import\s+)['"]?(?:https?:)?//""", text), path.relative_to(HTML)


def test_what_a_page_loads_is_there():
    for name, page in pages().items():
        for url in page.loads:
            if not url.startswith("data:"):
                assert (HTML / name).parent.joinpath(unquote(urlsplit(url).path)).exists(), f"{name}: {url}"


def test_no_page_names_a_folder_of_this_machine():
    for path in HTML.rglob("*.html"):
        text = path.read_text("utf8")
        assert not [name for name in (str(ROOT), "PosixPath(") if name in text], path.relative_to(HTML)


def test_links_inside_the_book_lead_somewhere():
    broken = []
    for name, page in pages().items():
        for url in page.links:
            parts = urlsplit(url)
            if away(url) or url == "#":
                continue
            page_file = (HTML / name).resolve()
            target = (page_file.parent / unquote(parts.path)).resolve() if parts.path else page_file
            where = os.path.relpath(target, HTML.resolve()).replace(os.sep, "/")
            unknown = parts.fragment and where in pages() and unquote(parts.fragment) not in pages()[where].ids
            if not target.exists() or unknown:
                broken.append(f"{name}: {url}")
    assert not broken, "\n".join(broken)


def test_each_image_says_what_it_shows():
    for name, page in pages().items():
        for image in page.images:
            alt = (image.get("alt") or "").strip()
            assert alt, f"{name}: {image.get('src')} has no alt text"
            assert not re.search(r"[0-9a-f]{32,}|\.(png|svg|jpe?g)$", alt), f"{name}: alt text is a file name: {alt}"


def test_each_page_has_a_language():
    assert not [name for name, page in pages().items() if page.lang != "en"]


def test_mathjax_and_its_fonts_come_with_the_book():
    mathjax = HTML / "_static" / "vendor" / "mathjax"
    assert (mathjax / "tex-chtml.js").exists()
    assert (mathjax / "LICENSE").exists()
    assert len(list((mathjax / "output" / "chtml" / "fonts" / "woff-v2").glob("*.woff"))) >= 20


def test_search_knows_the_chapters_without_a_server():
    index = (HTML / "searchindex.js").read_text("utf8")
    assert index.startswith("Search.setIndex(")  # a script, so that it works from file:// too
    names = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))["docnames"]
    assert set(contents()) <= set(names)


def test_each_module_is_on_an_api_page():
    modules = {path.stem for path in (ROOT / "clif_kit").glob("*.py")} - {"__init__"}
    ids = set().union(*(page.ids for name, page in pages().items() if name.startswith("book/api")))
    missing = {name for name in modules if f"module-clif_kit.{name}" not in ids}
    assert not missing, sorted(missing)


def test_each_citation_is_in_the_bibliography():
    keys = set(re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text("utf8"), re.M))
    texts = [path.read_text("utf8") for path in (ROOT / "book").glob("*.md")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        texts += [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    groups = [group for text in texts for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)]
    cited = {key.strip() for group in groups for key in group.split(",")}
    assert cited <= keys, f"not in references.bib: {cited - keys}"
    assert len(keys) >= 10


def test_launch_buttons_need_the_public_address():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    public = config["sphinx"]["config"]["clif_repository"]
    text = "".join((HTML / f"{name}.html").read_text("utf8") for name in contents())
    assert ("mybinder.org" in text) == ("colab.research.google.com" in text) == bool(public)
