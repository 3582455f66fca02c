"""How Sphinx builds the pages into a site: ``make docs``.

The pages are ordinary Markdown, so that they read well where there is no Sphinx. What a site needs beyond that is added
here when a page is read: the files of the project that are pages as well, links to these, and the order of the pages.
"""

import os.path
import re
import tomllib
from pathlib import Path

import django
from django.conf import settings

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
release = PROJECT["version"]
author = PROJECT["authors"][0]["name"]
copyright = author
language = "en"
highlight_language = "text"  # of a block that names no language: a drawing, or what a program says

extensions = ["myst_parser", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4  # page.md#a-heading, as on GitHub
autodoc_typehints = "none"
nitpick_ignore_regex = [("py:.*", r"(?!django_celery_signals).*")]  # the names of others lead nowhere
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor answers

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False

if not settings.configured:  # the library's modules need a project
    settings.configure(INSTALLED_APPS=["django_celery_signals"])
    django.setup()

# Pages that are files elsewhere in the project: what stands in docs/ under this name only leads to them.
ELSEWHERE = {
    "overview": "README.md",
    "example": "example/README.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "changelog": "CHANGELOG.md",
}
PAGE_OF = {path: f"{page}.md" for page, path in ELSEWHERE.items()}

CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?![a-z+]+:|#)([^)#\s]+)")
SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n)*)", re.MULTILINE)
ENTRY = re.compile(r"^- \[([^]]+)\]\(([\w-]+)\.md\)", re.MULTILINE)


def read(app, page, source):
    """Put what is elsewhere into its page, and let all links lead to pages, if they can."""
    place = "docs"
    if page in ELSEWHERE:
        app.env.note_dependency(str(ROOT / ELSEWHERE[page]))
        source[0] = (ROOT / ELSEWHERE[page]).read_text()
        place = os.path.dirname(ELSEWHERE[page])

    def target(match):
        path = os.path.normpath(os.path.join(place, match[1]))
        return PAGE_OF.get(path) or os.path.relpath(path, "docs")

    parts = CODE.split(source[0])
    parts[::2] = [LINK.sub(target, text) for text in parts[::2]]
    source[0] = "".join(parts)
    if page == "index":
        source[0] += "".join(toctree(*section) for section in SECTION.findall(source[0]))


def toctree(caption, section):
    """Return a section of the index for the sidebar, with the pages that its list names."""
    pages = "\n".join(f"{title} <{page}>" for title, page in ENTRY.findall(section))
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n" if pages else ""


def setup(app):
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
