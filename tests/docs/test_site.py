"""The pages are a site: every one has its place, links lead to headings, and the glossary is in order."""

from __future__ import annotations

import os.path
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import django_celery_signals
from django_celery_signals import statistics, testing
from tests.docs.pages import ROOT, block_with, page_of
from tests.lanes import Stage
from tests.shop.models import Customer, Order

INDEX = page_of("docs/index.md")
GLOSSARY = page_of("docs/glossary.md")
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "example/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def slugs(path: str) -> set[str]:
    """Return the anchors that GitHub, and MyST in the same way, gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page_of(path), flags=re.DOTALL | re.MULTILINE)
    shown = [re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(text)]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in shown}


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    """What ``docs/conf.py`` says, which needs no Sphinx to be read."""
    return runpy.run_path(str(ROOT / "docs" / "conf.py"))


@pytest.mark.django_db(transaction=True)
def test_first_block(page: Any, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """The index's receiver runs in a worker for what is created, and for nothing else."""
    page(block_with(INDEX, "def thank("))
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
    order.save()

    assert ("", 1) == (capsys.readouterr().out, stage.work())
    assert f"Thank you for order {order.pk}\n" == capsys.readouterr().out


@pytest.mark.parametrize("path", PAGES)
def test_anchors(path: str) -> None:
    """Every link to a heading, of its own page or of another, leads to one that is there."""
    found = re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page_of(path))
    target = {name: os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path for name, _ in found}

    assert [] == [(name, anchor) for name, anchor in found if anchor not in slugs(target[name])]


@pytest.mark.parametrize("path", [path for path in PAGES if not path.startswith(("docs/", "README"))])
def test_links_elsewhere(path: str) -> None:
    """Every relative link of a page outside of docs leads to a file."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page_of(path))

    assert [] == [target for target in targets if not (ROOT / path).parent.joinpath(target).exists()]


def test_every_page_has_its_place(site: dict[str, Any]) -> None:
    """The index names every page once, with the words by which the sidebar calls it."""
    placed = [page for _, page in site["ENTRY"].findall(INDEX)]

    assert sorted([*placed, "index"]) == sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


def test_pages_from_elsewhere(site: dict[str, Any]) -> None:
    """What leads to a file outside of docs is that file in the site, with links to pages of it."""
    assert site["ELSEWHERE"]
    for name, path in site["ELSEWHERE"].items():
        assert f"]({os.path.relpath(path, 'docs')})" in page_of(f"docs/{name}.md")
        read, noted = [""], list[str]()
        site["read"](SimpleNamespace(env=SimpleNamespace(note_dependency=noted.append)), name, read)
        assert [ROOT / path] == [Path(one) for one in noted]
        assert HEADING.findall(page_of(path)) == HEADING.findall(read[0])
        links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", read[0])
        assert [] == [link for link in links if not (ROOT / "docs" / link).exists()]


def test_links_to_pages_from_elsewhere(site: dict[str, Any]) -> None:
    """A link out of docs leads to a page of the site where there is one, with its heading, and else stays as it is."""
    same = "[c](../src/x.py) [d](why.md) [e](#here) [f](https://x.y)\n```python\nhandlers[0](../README.md)\n```\n"
    source = [f"[a](../README.md#options) [b](../CHANGELOG.md) {same}"]
    site["read"](None, "recipes", source)

    assert [f"[a](overview.md#options) [b](changelog.md) {same}"] == source


def test_sidebar(site: dict[str, Any]) -> None:
    """The lists of the index are the sidebar of the site."""
    source = ["# One\n\n## Two\n\n- [Three](four.md): five.\n- [Six](seven.md)\n\n## Eight\n\nNo page.\n"]
    site["read"](None, "index", source)

    [toctree] = re.findall(r"^```{toctree}\n(.*?)^```", source[0], re.DOTALL | re.MULTILINE)
    assert ":hidden:\n:caption: Two\n\nThree <four>\nSix <seven>\n" == toctree


def test_docstrings() -> None:
    """The page of docstrings has every public name, and none that is not there."""
    listed = re.findall(r"^\.\. auto\w+:: (\w+)$", page_of("docs/api.md"), re.MULTILINE)
    public = {*django_celery_signals.__all__, *testing.__all__, *statistics.__all__}

    assert public == set(listed)
    assert len(listed) == len(public)


def test_glossary() -> None:
    """The words stand in the order of the alphabet, each in a sentence or two with a link to what says more."""
    words = [word.strip("`") for word in re.findall(r"^## (.+)$", GLOSSARY, re.MULTILINE)]
    texts = re.split(r"^## .+$", GLOSSARY, flags=re.MULTILINE)[1:]

    assert words == sorted(words, key=str.lower)
    assert [] == [word for word, text in zip(words, texts, strict=True) if "](" not in text]
    assert [] == [word for word, text in zip(words, texts, strict=True) if len(text.split()) > 80]


def test_hosted_build() -> None:
    """Read the Docs builds what ``make docs`` builds, with what that needs."""
    said, made = page_of(".readthedocs.yaml"), page_of("Makefile")

    assert "configuration: docs/conf.py\n  fail_on_warning: true" in said
    assert "extra_requirements: [docs]" in said
    assert "docs: $(VENV)/.installed-docs " in made
    assert re.search(r"^docs = \[", page_of("pyproject.toml"), re.MULTILINE)
