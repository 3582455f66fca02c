"""What Sentry is sent by a process of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from tests.brokers import Broker
from tests.processes import Processes, environment
from tests.services import are_required

BEGIN = "import sys, django; django.setup(); from tests import sentry_roles; sentry_roles.main(*sys.argv[1:])"

#: At home a test may do without Sentry's SDK; in CI it may not.
needs_sentry = pytest.mark.skipif(
    find_spec("sentry_sdk") is None and not are_required(), reason="sentry-sdk, of the extra test, is not installed"
)


@dataclass(frozen=True, slots=True)
class Told:
    """What a process has told."""

    facts: dict[str, Any]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The errors that Sentry was sent, and the records of logging."""
        return [item for item in self.facts["sent"] if item.get("type") != "transaction"]

    def transactions(self, op: str) -> list[dict[str, Any]]:
        """Return what Sentry was told of runs of a kind, each with its name."""
        items = [item for item in self.facts["sent"] if item.get("type") == "transaction"]
        return [{"name": item["transaction"], **trace_of(item)} for item in items if trace_of(item)["op"] == op]


def trace_of(item: dict[str, Any]) -> dict[str, Any]:
    """Return how something that Sentry was sent belongs to a trace."""
    found: dict[str, Any] = item["contexts"]["trace"]
    return found


def play(processes: Processes, broker: Broker, role: str, code: str = "") -> Told:
    """Have a process play one of ``sentry_roles``, to its end.

    Args:
        processes: of the test.
        broker: where it sends.
        role: the name of the function.
        code: of the project's, to run before.
    """
    said = processes.folder / f"{role}.json"
    arguments = (role, broker.name, broker.url, broker.queue, str(said), code)
    process = processes.start("python", "-c", BEGIN, *arguments, name=role, env=environment(broker))
    assert 0 == process.wait(timeout=60), process.log
    return Told(json.loads(said.read_text()))
