"""What a module for one tool says where that tool is not installed."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("opentelemetry", "opentelemetry", "opentelemetry")],
)
def test_extra(monkeypatch: pytest.MonkeyPatch, module: str, package: str, extra: str) -> None:
    """Without its package a module cannot be imported, and names the extra that brings it."""
    name = f"django_celery_signals.observing.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(
        ImportError, match=rf"needs {package}, .* pip install \"django-celery-signals\[{extra}\]\""
    ) as at:
        import_module(name)
    assert isinstance(at.value.__cause__, ImportError)
