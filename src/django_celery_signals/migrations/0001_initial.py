"""The tables of deliveries and probes."""

from django.db import migrations, models

import django_celery_signals.durable.clock


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="QueueProbe",
            fields=[
                ("queue", models.CharField(max_length=255, primary_key=True, serialize=False)),
                ("token", models.BigIntegerField()),
                ("probed_at", models.DateTimeField(null=True)),
                ("seen", models.DateTimeField(null=True)),
                ("seen_at", models.DateTimeField(null=True)),
                ("swept", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("event_id", models.CharField(max_length=36)),
                ("receiver", models.CharField(max_length=255)),
                ("signal", models.CharField(max_length=255)),
                ("summary", models.CharField(max_length=255)),
                ("queue", models.CharField(max_length=255)),
                ("key", models.CharField(max_length=255, null=True)),
                ("lane", models.CharField(max_length=32, null=True)),
                ("slot", models.CharField(max_length=32, null=True, unique=True)),
                ("folds", models.BooleanField(default=False)),
                (
                    "state",
                    models.PositiveSmallIntegerField(
                        choices=[(1, "ready"), (2, "sent"), (3, "running"), (4, "failed"), (5, "done")]
                    ),
                ),
                ("due_at", models.DateTimeField(null=True)),
                ("sent_at", models.DateTimeField(null=True)),
                ("token", models.BigIntegerField()),
                ("claim", models.BigIntegerField(null=True)),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("crashes", models.PositiveIntegerField(default=0)),
                ("reruns", models.PositiveIntegerField(default=0)),
                ("sends", models.PositiveIntegerField(default=0)),
                ("options", models.JSONField(default=dict)),
                ("payload", models.TextField(null=True)),
                ("created_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(null=True)),
                ("error_type", models.CharField(max_length=255, null=True)),
                ("error_message", models.TextField(null=True)),
                ("traceback", models.TextField(null=True)),
                ("fingerprint", models.CharField(max_length=255, null=True)),
            ],
            options={
                "verbose_name_plural": "deliveries",
                "indexes": [
                    django_celery_signals.durable.clock.PartialIndex(
                        "state", "due_at", "id", name="dcs_delivery_due", where=models.Q(("due_at__isnull", False))
                    ),
                    django_celery_signals.durable.clock.PartialIndex(
                        "state", "queue", "sent_at", name="dcs_delivery_sent", where=models.Q(("state", 2))
                    ),
                    django_celery_signals.durable.clock.PartialIndex(
                        "state", "lane", "id", name="dcs_delivery_lane", where=models.Q(("lane__isnull", False))
                    ),
                    django_celery_signals.durable.clock.PartialIndex(
                        "receiver", "id", name="dcs_delivery_failed", where=models.Q(("state", 4))
                    ),
                ],
            },
        ),
    ]
