"""Sentry's own instrumentation of Celery, of receivers: errors, runs and traces."""

from __future__ import annotations

from typing import Any

import pytest

from tests.brokers import Broker
from tests.parameters import each_broker
from tests.processes import Processes
from tests.sentry import needs_sentry, play, trace_of

pytestmark = [needs_sentry, pytest.mark.django_db(transaction=True)]

ROLES = "tests.sentry_roles"


def exceptions(item: dict[str, Any]) -> list[tuple[str, str, str]]:
    values = item.get("exception", {}).get("values", [])
    return [(value["type"], value["value"], value["mechanism"]["type"]) for value in values]


@each_broker("memory", "rabbitmq")
def test_a_run_goes_on_with_the_trace(broker: Broker, processes: Processes) -> None:
    """A receiver gets what was sent, and its run is a transaction in the trace of whoever published."""
    told = play(processes, broker, "rings")

    traces = told.facts["traces"]
    assert 2 == len(set(traces))
    assert [["hällo", 0, traces[0]], ["hällo", 1, traces[1]]] == told.facts["seen"]
    assert [0, 0] == [
        headers["headers"]["sentry-trace"].find(traces[n]) for n, headers in enumerate(told.facts["headers"])
    ]
    runs = told.transactions("queue.task.celery")
    assert [(f"{ROLES}.ring", trace_id, "ok") for trace_id in traces] == [
        (run["name"], run["trace_id"], run["status"]) for run in runs
    ]
    assert [] == told.errors


def test_an_error_is_sent_once(broker: Broker, processes: Processes) -> None:
    """A run that will be repeated sends no error; the last one sends the receiver's own, and the library's record."""
    told = play(processes, broker, "refusals")

    record, error = told.errors
    assert ["RETRY", "FAILURE"] == told.facts["states"]
    assert [("OutOfStock", "none are left", "celery")] == exceptions(error)
    assert (f"{ROLES}.refuse", f"{ROLES}.refuse") == (
        error["transaction"],
        error["extra"]["celery-job"]["task_name"],
    )
    assert "[Filtered]" == error["extra"]["celery-job"]["kwargs"]
    frame = error["exception"]["values"][0]["stacktrace"]["frames"][-1]
    assert ("refuse", {"word": "'a secret'"}) == (frame["function"], frame["vars"])
    assert ("django_celery_signals.durable.failing", []) == (record["logger"], exceptions(record))
    runs = told.transactions("queue.task.celery")
    assert [(f"{ROLES}.refuse", "aborted"), (f"{ROLES}.refuse", "internal_error")] == [
        (run["name"], run["status"]) for run in runs
    ]


def test_a_relay_has_no_trace(broker: Broker, processes: Processes) -> None:
    """A run that a relay published begins a trace of its own."""
    told = play(processes, broker, "refusals")

    [request], [first, second] = told.facts["traces"], told.facts["headers"]
    assert ("sentry-trace" in first, "sentry-trace" in second) == (True, False)
    one, other = [run["trace_id"] for run in told.transactions("queue.task.celery")]
    assert (request, False) == (one, other == request)
    assert other == trace_of(told.errors[-1])["trace_id"]


def test_the_record_can_be_left_out(broker: Broker, processes: Processes) -> None:
    """Where Sentry ignores the library's record of the failure, the error alone is sent."""
    [error] = play(processes, broker, "quiet_refusals").errors

    assert [("OutOfStock", "none are left", "celery")] == exceptions(error)


def test_other_outcomes(broker: Broker, processes: Processes) -> None:
    """The error of a receiver without a row is sent at its only run; an event that is dropped on purpose sends none."""
    told = play(processes, broker, "others")

    [error] = told.errors
    assert ["FAILURE", "IGNORED"] == told.facts["states"]
    assert (f"{ROLES}.hurry", [("OutOfStock", "none are left", "celery")]) == (error["transaction"], exceptions(error))
    assert ["internal_error", "aborted"] == [run["status"] for run in told.transactions("queue.task.celery")]


def test_one_of_several_fails(broker: Broker, processes: Processes) -> None:
    """The error of one of several in a message is sent by way of the library's record, which has its traceback."""
    told = play(processes, broker, "several_refusals")

    record, error = told.errors
    assert (["SUCCESS"], "django_celery_signals.durable.failing") == (told.facts["states"], record["logger"])
    assert ("django_celery_signals.together", f"{ROLES}.spill") == (error["logger"], error["transaction"])
    assert [("OutOfStock", "none are left", "logging")] == exceptions(error)
    assert "spill" == error["exception"]["values"][0]["stacktrace"]["frames"][-1]["function"]
    assert ["ok"] == [run["status"] for run in told.transactions("queue.task.celery")]
