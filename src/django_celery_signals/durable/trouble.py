"""Which errors of a database speak of the moment and not of the work: outages, deadlocks, serialization failures."""

from __future__ import annotations

from django.db import InterfaceError, OperationalError

# serialization_failure, deadlock_detected, lock_not_available; idle_in_transaction_session_timeout
_POSTGRESQL = ("40001", "40P01", "55P03", "25P03")
_POSTGRESQL_CLASSES = ("08", "57P0")  # connection exceptions; shutdown by an administrator, a crash, a start
# lock wait timeout, deadlock, record changed since last read; shutdown, server gone, lost, cannot connect
_MYSQL = (1205, 1213, 1020, 1053, 1927, 2002, 2003, 2006, 2013, 2055)
_SQLITE = ("database is locked", "database table is locked")


def is_transient(error: BaseException) -> bool:
    """Tell whether the same work may well succeed a moment later, for reasons that are none of its own."""
    if not isinstance(error, (OperationalError, InterfaceError)):
        return False
    cause = error.__cause__ or error
    if hasattr(cause, "sqlstate"):  # psycopg; without a state it is the connection that failed
        state = cause.sqlstate
        return state is None or state in _POSTGRESQL or state.startswith(_POSTGRESQL_CLASSES)
    code = cause.args[0] if cause.args else None
    if isinstance(code, int):  # mysqlclient, pymysql; 0 is what they say of a closed connection
        return code in _MYSQL or (code == 0 and isinstance(error, InterfaceError))
    return any(words in str(error) for words in _SQLITE)
