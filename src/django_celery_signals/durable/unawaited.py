"""A sender's INSERT, which PostgreSQL executes while Python goes on: whoever next uses the connection waits for it.

In a transaction nothing depends on its answer before that: the next statement, or the COMMIT at the latest, comes
behind it in any case. What was refused is raised there, and again at every use until the transaction is rolled back,
and then once more where nobody is told: the first to meet it may be somebody whose errors are swallowed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError
from django.db.backends import utils
from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import DeliveryRefused
from .client import not_any_more, on_its_next_use, takes_its_lock

try:
    from django.db.backends.postgresql import base

    Database: Any = base.Database  # type: ignore[attr-defined]  # psycopg
    execute, error_from_result = Database.generators.execute, Database.errors.error_from_result
    ExecStatus, TransactionStatus, PipelineStatus = (
        getattr(Database.pq, name) for name in ("ExecStatus", "TransactionStatus", "PipelineStatus")
    )
except (ImproperlyConfigured, AttributeError):  # another client, or one that is built differently
    Database = None

logger = logging.getLogger(__name__)

Explain = Callable[[Exception], object]  # adds a note
Wrapper = Callable[..., Any]  # of the statements that a connection executes


class Answer:
    """What the server says of a statement, once somebody has waited for it: a key, if it returns one."""

    def __init__(self, connection: Any, explain: Explain, *, returns: bool) -> None:
        """Wait at the next use of the client.

        Args:
            connection: Django's.
            explain: notes in the error what failed: it is raised where something else is done.
            returns: whether the statement returns a key.
        """
        self._connection, self._client, self._explain = connection, connection.connection, explain
        self._returns = returns
        self._key: int | None = None
        self._refused: Exception | None = None
        self._around = _handled()  # by the sender
        on_its_next_use(self._client, self._arrive)
        self._client.rollback = self._roll_back

    def key(self) -> int:
        """Return the key, and wait for it if nobody has yet.

        Raises:
            django.db.Error: when the server has refused the statement, or its answer is lost.
        """
        if self._key is None:
            with self._connection.wrap_database_errors, self._client.lock:
                pass
        if self._key is None:
            raise InterfaceError(
                "An INSERT's answer is lost: the connection is closed, was used past psycopg, or a time limit came."
            )
        return self._key

    def _arrive(self) -> None:
        on_its_next_use(self._client, self._arrive)  # until it is good: whatever comes in between
        if self._refused is None and not self._client.closed:  # else who is about to use it is told so
            self._wait()
        if self._refused is not None:
            raise self._refused
        self._forget()

    def _wait(self) -> None:
        """Hear what the server says. What a time limit has cut off, the state of the transaction tells."""
        connection, client = self._connection, self._client
        try:
            for result in client.wait(execute(client.pgconn)):
                if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
                    raise error_from_result(result, encoding="utf-8")
                if self._returns and not result.ntuples:
                    raise Database.DataError("The INSERT has written no row: a trigger or a rule has prevented it.")
                self._key = int(result.get_value(0, 0)) if self._returns else None
            if client.pgconn.transaction_status == TransactionStatus.INERROR:
                raise Database.InternalError("The INSERT was refused; why was lost when a time limit came.")
        except Database.Error as error:
            self._explain(error)
            self._refused = error
            logger.error("%s %s", error, *error.__notes__)  # for whoever is told next may swallow it
        except BaseException:
            if not connection.in_atomic_block:  # of a COMMIT Django takes a database's errors only for its failure
                connection.close()
            raise

    def _roll_back(self) -> None:
        """Do what the client's ``rollback()`` does.

        Raises:
            DeliveryRefused: when Django rolls back for what was refused, and for no error: somebody has swallowed that.
                It is none of the database's, which Django swallows here.
        """
        told = self._refused  # to somebody already; what is heard only now need not be
        with suppress(Database.Error), self._client.lock:
            pass
        self._forget()
        self._client.rollback()
        raised = sys.exc_info()[1]
        if told is not None and (raised is None or any(raised is one for one in self._around)):
            # What Django does behind it, which this error keeps it from: nothing is to follow the next commit.
            self._connection.needs_rollback, self._connection.run_on_commit = False, []
            message = f"The transaction was rolled back: {told} Something has swallowed that error."
            raise DeliveryRefused(message) from told

    def _forget(self) -> None:
        not_any_more(self._client, self._arrive)
        vars(self._client).pop("rollback", None)


def _handled() -> list[BaseException]:
    """Return the errors that are being handled, the innermost first: each was raised while the next one was."""
    found: list[BaseException] = []
    error = sys.exc_info()[1]
    while error is not None and not any(error is one for one in found):
        found.append(error)
        error = error.__context__
    return found


def executed(
    connection: BaseDatabaseWrapper,
    sql: str,
    values: Sequence[Any],
    explain: Explain,
    *,
    returns: bool = True,
    own: Wrapper | None = None,
) -> Answer | None:
    """Have a statement executed without waiting for it; None: here it must be waited for.

    Within a savepoint it must: to roll back to that would not tell what was refused, and save the transaction.

    Args:
        connection: to the database.
        sql: the statement.
        values: its parameters.
        explain: notes in an error what failed.
        returns: whether it returns a key.
        own: a wrapper of the connection's statements that need not see this one.

    Raises:
        django.db.Error: when it cannot be sent, or the one before was refused.
    """
    if Database is None or connection.vendor != "postgresql" or not _is_unwatched(connection, own):
        return None
    parameters = _encoded(values)
    if parameters is None:
        return None
    client: Any = connection.connection
    with connection.wrap_database_errors, client.lock:  # which waits for the statement before
        if not _is_ready(client):
            return None
        answer = Answer(connection, explain, returns=returns)
        client.pgconn.send_query_params(_numbered(sql), parameters)
        client.pgconn.flush()  # what is left of a large one, whoever waits sends
    return answer


def _is_unwatched(connection: Any, own: Wrapper | None) -> bool:
    """Tell whether a statement may go past Django's cursor: in a transaction, and nobody looks at statements, as tests,
    tracing or a backend of somebody else's do.
    """
    connection.validate_thread_sharing()
    return (
        connection.in_atomic_block
        and connection.commit_on_exit  # the outermost block commits
        and not any(connection.savepoint_ids)
        and not connection.needs_rollback
        and not connection.queries_logged
        and all(wrapper == own for wrapper in connection.execute_wrappers)
        and not connection.allow_thread_sharing
        and type(connection.connection) is Database.Connection
        and connection.connection.cursor_factory.__module__ == base.__name__
        and all(_is_djangos(getattr(getattr(connection, name), "__func__", None)) for name in _MAKE_CURSORS)
        and _is_djangos(utils.CursorWrapper.execute)
        and takes_its_lock(connection)
    )


_MAKE_CURSORS = ("cursor", "_cursor", "create_cursor", "make_cursor")


@lru_cache
def _is_djangos(function: Any) -> bool:
    """Tell whether a function is not somebody else's in its place."""
    return str(getattr(function, "__globals__", {}).get("__name__")).startswith("django.")


def _is_ready(client: Any) -> bool:
    """Tell whether a client is in a transaction, which the first statement begins, and takes texts as they are here."""
    libpq = client.pgconn
    return (
        "rollback" not in vars(client)
        and not getattr(client, "_num_transactions", 0)  # psycopg's own blocks, which are savepoints here
        and not getattr(client, "_tpc", None)
        and libpq.transaction_status == TransactionStatus.INTRANS
        and libpq.pipeline_status == PipelineStatus.OFF
        and libpq.parameter_status(b"client_encoding") == b"UTF8"
    )


def _encoded(values: Sequence[Any]) -> list[bytes | None] | None:
    """Return the parameters; None: the client is to say what it does not like of them."""
    try:
        encoded = [None if value is None else _text(value).encode() for value in values]
    except UnicodeEncodeError:
        return None
    return None if any(b"\0" in value for value in encoded if value) else encoded


def _text(value: Any) -> str:
    return str.__str__(value) if isinstance(value, str) else str(value)


@lru_cache
def _numbered(sql: str) -> bytes:
    """Return a statement with its parameters as PostgreSQL counts them."""
    first, *others = sql.split("%s")
    return "".join([first, *(f"${number}{text}" for number, text in enumerate(others, 1))]).encode()
