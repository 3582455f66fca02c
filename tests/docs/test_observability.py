"""What the page on observability says of Sentry."""

from __future__ import annotations

import pytest

from tests.brokers import Broker
from tests.docs.pages import block_with, page_of
from tests.processes import Processes
from tests.sentry import needs_sentry, play, trace_of

OBSERVABILITY = page_of("docs/observability.md")


@needs_sentry
@pytest.mark.django_db(transaction=True)
def test_sentry_block(broker: Broker, processes: Processes) -> None:
    """With the page's block every run, also a relay's, is in the trace of the sending; the error is in Celery's."""
    told = play(processes, broker, "refusals", block_with(OBSERVABILITY, "sentry_sdk.continue_trace("))

    [request] = told.facts["traces"]
    runs = told.transactions("queue.process")
    assert [("tests.sentry_roles.refuse", request)] * 2 == [(run["name"], run["trace_id"]) for run in runs]
    assert [request, request] == told.facts["seen"]
    assert told.transactions("queue.task.celery")[-1]["trace_id"] == trace_of(told.errors[-1])["trace_id"] != request


@needs_sentry
@pytest.mark.django_db(transaction=True)
def test_sentry_block_and_several_in_a_message(broker: Broker, processes: Processes) -> None:
    """Each of several runs is one transaction in the trace of the sending; those of a batch have Celery's alone."""
    told = play(processes, broker, "several", block_with(OBSERVABILITY, "sentry_sdk.continue_trace("))

    [request] = told.facts["traces"]
    assert (["SUCCESS"] * 2, 4) == (told.facts["states"], len(told.facts["seen"]))
    runs = [(run["name"], run["trace_id"]) for run in told.transactions("queue.process")]
    assert [("tests.sentry_roles.one_by_one", request)] * 3 == runs
    celerys = {run["name"].rpartition(".")[2] for run in told.transactions("queue.task.celery")}
    assert {"one_by_one", "all_at_once"} == celerys
