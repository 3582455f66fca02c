"""What the tests of the documentation share: code blocks as modules of a project."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from django_celery_signals import bridge, connections, disconnect
from tests import shop
from tests.lanes import Stage
from tests.receiving import Receiving
from tests.shop import models


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Any]:
    """Runs code blocks as modules of a project whose app is called ``shop``; what they connect is undone.

    Its settings are the library's defaults.
    """
    settings.DJANGO_CELERY_SIGNALS = {}
    for name, module in {"shop": shop, "shop.models": models}.items():
        monkeypatch.setitem(sys.modules, name, module)
    before = connections()

    def run(code: str, name: str = "shop.page") -> dict[str, Any]:
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(code, f"{name}.py", "exec"), vars(module))
        return vars(module)

    yield run
    for made in [one for one in connections() if one not in before]:
        spelling = bridge.Spelling(bridge.send, bridge.target_of(made.receiver))
        disconnect(made.signal, spelling, sender=made.sender)


@pytest.fixture
def stage(celery_app: Celery, receiving: Receiving) -> Stage:
    """The default database, and what a worker and a relay do with its deliveries."""
    return Stage(alias="default", app=celery_app, receiving=receiving)
