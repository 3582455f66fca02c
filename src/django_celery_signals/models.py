"""The tables: a row for each delivery, each queue that is probed, each paused receiver, and each minute's figures."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from .durable.clock import PartialIndex
from .durable.deliveries import DeliveryQuerySet
from .durable.rows import State


class Delivery(models.Model):
    """One event on its way to one receiver, from the sender's commit until the receiver has succeeded.

    The database keeps the times by its own clock. Nothing but the verbs of :class:`DeliveryQuerySet` and the worker's
    hold on a row writes here; no signal is sent for it.
    """

    id = models.BigAutoField(primary_key=True)
    event_id = models.CharField(max_length=36)  # the same at every attempt
    receiver = models.CharField(max_length=255)  # name of the task
    signal = models.CharField(max_length=255)  # "module:name"; empty for a signal that no module holds
    summary = models.CharField(max_length=255)  # "post_save shop.Order pk=5 created": never a field's value
    queue = models.CharField(max_length=255)  # where it was published last; empty where the route names none
    key = models.CharField(max_length=255, null=True)  # what it is about, to be shown; null: it waits for no other
    lane = models.CharField(max_length=32, null=True)  # a hash of receiver and key; one of a lane runs at a time
    slot = models.CharField(max_length=32, null=True, unique=True)  # its lane, when it is its turn
    folds = models.BooleanField(default=False)  # whether what waits behind it is folded into it when it starts
    state = models.PositiveSmallIntegerField(choices=State.choices)
    due_at = models.DateTimeField(null=True)  # when the relay must look; null: it need not
    sent_at = models.DateTimeField(null=True)  # when the last publication began
    token = models.BigIntegerField()  # the fence: what a message must know to open the row; each opening changes it
    claim = models.BigIntegerField(null=True)  # the relay's fence: which batch has it
    attempts = models.PositiveIntegerField(default=0)  # runs that failed and counted
    crashes = models.PositiveIntegerField(default=0)  # runs of which the worker never said how they ended
    reruns = models.PositiveIntegerField(default=0)  # what was tried again without counting: outages, deadlocks
    sends = models.PositiveIntegerField(default=0)  # publications since the last run
    options = models.JSONField(default=dict)  # of apply_async, and what is asked of this delivery
    payload = models.TextField(null=True)
    created_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    error_type = models.CharField(max_length=255, null=True)
    error_message = models.TextField(null=True)
    traceback = models.TextField(null=True)
    fingerprint = models.CharField(max_length=255, null=True)
    # What caused it, as its payload says as well. One without a parent has none of it, and is in no index for it.
    depth = models.SmallIntegerField(default=0, db_default=0)  # how many receivers caused this sending, one another
    parent_id = models.CharField(max_length=36, null=True)  # id of the event whose receiver sent this one
    root_id = models.CharField(max_length=36, null=True)  # id of the event that began; null for that one itself

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "deliveries"
        default_permissions = ("view",)  # nobody adds, edits or deletes one by hand
        permissions = [
            ("replay_delivery", "Can retry and discard failed deliveries"),
            ("view_payload", "Can see what was sent: payload, key, options, error message and traceback"),
        ]
        indexes = [
            PartialIndex("state", "due_at", "id", name="dcs_delivery_due", where=Q(due_at__isnull=False)),
            PartialIndex("state", "queue", "sent_at", name="dcs_delivery_sent", where=Q(state=State.SENT)),
            PartialIndex("state", "lane", "id", name="dcs_delivery_lane", where=Q(lane__isnull=False)),
            PartialIndex(
                *("state", "receiver", "id"),
                name="dcs_delivery_kept",
                where=Q(state=State.FAILED) | Q(state=State.PAUSED),
            ),
            PartialIndex("parent_id", "id", name="dcs_delivery_parent", where=Q(parent_id__isnull=False)),
            PartialIndex("root_id", "id", name="dcs_delivery_root", where=Q(root_id__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.summary} -> {self.receiver} ({State(self.state).label})"


class Pause(models.Model):
    """A receiver whose deliveries wait, until somebody lets it go on; no worker opens one meanwhile."""

    receiver = models.CharField(max_length=255, primary_key=True)  # name of the task, as the deliveries have it
    since = models.DateTimeField()

    def __str__(self) -> str:
        return self.receiver


class QueueProbe(models.Model):
    """What is known of a queue: whatever was sent before a probe that a worker has seen has reached a worker, too."""

    queue = models.CharField(max_length=255, primary_key=True)
    token = models.BigIntegerField()  # what a probe must know to be believed
    probed_at = models.DateTimeField(null=True)  # when the last probe was published
    seen = models.DateTimeField(null=True)  # when the last probe that arrived was published
    seen_at = models.DateTimeField(null=True)  # when it arrived
    swept = models.DateTimeField(null=True)  # the last ``seen`` that was acted on

    def __str__(self) -> str:
        return self.queue


class Minute(models.Model):
    """What happened in one minute to the deliveries for one receiver, and to all together; ``statistics`` reads it.

    Figures, and no ledger: a process that is killed takes what it has counted in its last seconds with it.
    """

    pk = models.CompositePrimaryKey("receiver", "minute")
    receiver = models.CharField(max_length=255)  # name of the task; empty: of all receivers
    minute = models.IntegerField()  # since 1970, in UTC, by the clock of the process that counted
    sent = models.PositiveIntegerField(default=0)  # messages that the broker took, for each publication
    succeeded = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)  # for good
    retried = models.PositiveIntegerField(default=0)  # runs that failed and were to be repeated
    discarded = models.PositiveIntegerField(default=0)
    runtime = models.FloatField(default=0.0)  # seconds, of all runs that succeeded
    lag = models.FloatField(null=True)  # seconds for which the oldest waits that could run; only of all receivers
    waiting = models.PositiveIntegerField(null=True)  # how many could run, up to a bound; only of all receivers

    class Meta:
        indexes = [models.Index(fields=["minute"], name="dcs_minute_minute")]

    def __str__(self) -> str:
        return f"{self.receiver or 'all receivers'}, minute {self.minute}"
