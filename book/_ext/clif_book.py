"""What the book asks of Sphinx beyond its configuration.

One setting, ``clif_repository``, turns on the launch buttons, the repository links and the book's public address.
Scripts that the theme's helpers add twice, or that would ask another server for something, are left out.
"""

import pkgutil
import re
from pathlib import Path
from urllib.parse import urlsplit

import clif_kit


def use_public_address(app, config):
    """Switch on everything that needs a public repository, or nothing."""
    options = config.html_theme_options
    url = config.clif_repository.rstrip("/")
    options.update(use_repository_button=bool(url), use_issues_button=bool(url))
    if not url:
        options.pop("repository_url", None)
        options["launch_buttons"] = {}
        return
    owner, name = urlsplit(url).path.strip("/").split("/")
    config.html_baseurl = f"https://{owner.lower()}.github.io/{name}/"
    options.update(repository_url=url, repository_branch="main", path_to_docs="")
    options["launch_buttons"] = {
        "notebook_interface": "jupyterlab",
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
    }


def modules():
    return sorted(module.name for module in pkgutil.iter_modules(clif_kit.__path__))


def outdated_pages(app, env, added, changed, removed):
    """The API page, if a module has come or gone since the last build."""
    before, env.clif_modules = getattr(env, "clif_modules", None), modules()
    return [] if before == env.clif_modules else ["book/api"]


def list_remaining_modules(app, docname, source):
    """Add to the first API page each module that none of them places in a section of its own."""
    if docname != "book/api":
        return
    texts = [path.read_text("utf8") for path in Path(app.srcdir, "book").glob("api*.md")]
    placed = set(re.findall(r"automodule:: clif_kit\.(\w+)", "\n".join(texts)))
    rest = [name for name in modules() if name not in placed]
    if rest:
        parts = [f"### {name}\n\n```{{eval-rst}}\n.. automodule:: clif_kit.{name}\n```\n" for name in rest]
        source[0] += "\n## For single chapters\n\n" + "\n".join(parts)


def drop_doubled_scripts(app, pagename, templatename, context, doctree):
    """Sphinx-thebe declares its constants twice (an error on each page) and we do not use it; others are doubled."""
    seen, kept = set(), []
    for script in context.get("script_files", []):
        key = (str(getattr(script, "filename", script)), (getattr(script, "attributes", None) or {}).get("body"))
        if key in seen or "THEBE_JS_URL" in str(key[1]) or "sphinx-thebe.js" in key[0]:
            continue
        seen.add(key)
        kept.append(script)
    context["script_files"][:] = kept


MEND = [  # what the pages' makers write -> what a screen reader needs
    (' aria-label="Toggle hidden content"', ""),  # it hides the visible words "Show code cell source"
    ('<section id="exercise-content">', '<section class="exercise-content">'),  # the same id for each exercise
    ('<section id="solution-content">', '<section class="solution-content">'),
    (' role="doc-biblioentry"', ""),  # deprecated, and its parent would need list items
    ('<div role="list" class="citation-list">', '<div class="citation-list">'),
]


def mend_page(app, pagename, templatename, context, doctree):
    """Put the small accessibility faults of the page's body right."""
    for wrong, right in MEND:
        context["body"] = context.get("body", "").replace(wrong, right)


def write_front_door(app, error):
    """The root page sends readers to the first page; a bare redirect would have neither title nor language."""
    first = f"{app.config.root_doc}.html"
    if error or app.builder.name != "html" or first == "index.html":
        return
    (Path(app.outdir) / "index.html").write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{app.config.html_title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><meta http-equiv="refresh" content="0; url={first}"></head>'
        f'<body><main><h1>{app.config.html_title}</h1><p><a href="{first}">Open the book</a></p></main></body></html>\n'
    )


def setup(app):
    app.add_config_value("clif_repository", "", "html", [str])
    app.connect("config-inited", use_public_address)
    app.connect("env-get-outdated", outdated_pages)
    app.connect("source-read", list_remaining_modules)
    app.connect("html-page-context", drop_doubled_scripts, priority=950)
    app.connect("html-page-context", mend_page)
    app.connect("build-finished", write_front_door)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
