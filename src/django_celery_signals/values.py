"""What is known of a row, and until when: values count only while the save they are from may still be committed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper


class Fate:
    """Whether what was saved inside a transaction is committed or rolled back; shared by all copies of an instance."""

    __slots__ = ("__weakref__", "_at", "_connection", "_hook", "_was_committed", "savepoints")

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Follow the transaction that is open on a connection."""
        self.savepoints = frozenset(connection.savepoint_ids)  # of which none is used twice
        self._connection, self._at = connection, len(connection.run_on_commit)
        self._was_committed = False

        def commit() -> None:
            self._was_committed = True

        # Held by nothing but Django's list of commit hooks: gone without having been called once it was rolled back.
        self._hook = weakref.ref(commit)
        transaction.on_commit(commit, using=connection.alias)

    @classmethod
    def of(cls, connection: BaseDatabaseWrapper) -> Fate:
        """Return the fate of what is saved now; all instances of a transaction share it, and its one commit hook."""
        latest = _latest.get(connection, lambda: None)()
        if latest is None or latest.is_decided or latest.savepoints != frozenset(connection.savepoint_ids):
            latest = cls(connection)
            _latest[connection] = weakref.ref(latest)
        return latest

    @property
    def is_rolled_back(self) -> bool:
        return not self._was_committed and self._hook() is None

    @property
    def is_committed(self) -> bool:
        """Whether it is, also while hooks that come before this one's still run."""
        hook, hooks = self._hook(), self._connection.run_on_commit
        is_queued = self._at < len(hooks) and hooks[self._at][1] is hook
        return self._was_committed or (hook is not None and not is_queued)

    @property
    def is_decided(self) -> bool:
        return self.is_committed or self.is_rolled_back


_latest: weakref.WeakKeyDictionary[BaseDatabaseWrapper, Callable[[], Fate | None]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Watched values as of one load or save. The copies of an instance share them."""

    row: tuple[Any, ...]  # database alias and primary key: of another row nothing is known
    fields: dict[str, Any]
    fate: Fate | None = None  # None: nothing can take these values back
    before: Values | None = None  # what counts again when that happens

    def standing(self) -> Values:
        """Return the newest values that have not been rolled back."""
        values = self
        while values.before is not None and values.fate is not None and values.fate.is_rolled_back:
            values = values.before
        return values

    def outliving(self, savepoints: Set[Any]) -> Values:
        """Return the newest values that a rollback of all these savepoints would leave standing.

        Its own past is thinned likewise: a long-lived instance must not keep every save of its life.
        """
        if self.before is None or self.fate is None or self.fate.is_committed:
            return Values(self.row, self.fields)
        own = self.fate.savepoints & savepoints  # the others were released
        if own == savepoints:
            return self.before.outliving(savepoints)
        return replace(self, before=self.before.outliving(own))

    def __reduce__(self) -> tuple[Any, ...]:
        """Let instances be copied and pickled, as caches do: the copy starts from the values standing now."""
        standing = self.standing()
        return Values, (standing.row, standing.fields)
