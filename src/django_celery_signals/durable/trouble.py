"""Which errors of a database speak of the moment and not of the work: outages, deadlocks, serialization failures."""

from __future__ import annotations

from django.db import InterfaceError, InternalError, OperationalError

# Two transactions met, and this one was ended: serialization_failure, deadlock_detected;
# deadlock, record changed since last read.
_CONFLICTS = ("40001", "40P01", 1213, 1020)
# lock_not_available; idle_in_transaction_session_timeout; read_only_sql_transaction, as after a failover
_POSTGRESQL = (*_CONFLICTS, "55P03", "25P03", "25006")
# Connection exceptions; no room for more of them, or on the disk; shutdown by an administrator, a crash, a start.
_POSTGRESQL_CLASSES = ("08", "53", "57P0")
# lock wait timeout; shutdown, killed, server gone, lost, cannot connect, idle for too long; too many connections; read
# only, as after a failover
_MYSQL = (*_CONFLICTS, 1205, 1053, 1927, 2002, 2003, 2006, 2013, 2055, 4031, 1040, 1203, 1290, 1836)
_SQLITE = ("database is locked", "database table is locked")


def is_transient(error: BaseException) -> bool:
    """Tell whether the same work may well succeed a moment later, for reasons that are none of its own."""
    if not isinstance(error, (OperationalError, InterfaceError, InternalError)):
        return False
    code = _code(error)
    if code is None:  # it is the connection that failed
        return True
    if isinstance(code, int):
        return code in _MYSQL or (code == 0 and isinstance(error, InterfaceError))  # 0: of a closed connection
    return code in _POSTGRESQL or code.startswith(_POSTGRESQL_CLASSES) or any(words in code for words in _SQLITE)


def is_conflict(error: BaseException) -> bool:
    """Tell whether a statement met another transaction's, and nothing else is wrong with it."""
    return isinstance(error, OperationalError) and _code(error) in _CONFLICTS


def _code(error: BaseException) -> str | int | None:
    """Return what a database's client says of an error: a number; SQLSTATE, or None without one; or only words."""
    cause = error.__cause__ or error
    if cause.args and isinstance(cause.args[0], int):  # mysqlclient, and pymysql, whose newer ones have sqlstate, too
        return cause.args[0]
    for name in ("sqlstate", "pgcode"):  # psycopg, psycopg2
        if hasattr(cause, name):
            state: str | None = getattr(cause, name)
            return state
    return str(error)
