"""Receivers that are paused."""

from django.db import migrations, models

import django_celery_signals.durable.clock


class Migration(migrations.Migration):
    dependencies = [("django_celery_signals", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="Pause",
            fields=[
                ("receiver", models.CharField(max_length=255, primary_key=True, serialize=False)),
                ("since", models.DateTimeField()),
            ],
        ),
        migrations.AlterField(
            model_name="delivery",
            name="state",
            field=models.PositiveSmallIntegerField(
                choices=[(1, "ready"), (2, "sent"), (3, "running"), (4, "failed"), (5, "done"), (6, "paused")]
            ),
        ),
        migrations.RemoveIndex(model_name="delivery", name="dcs_delivery_failed"),
        migrations.AddIndex(
            model_name="delivery",
            index=django_celery_signals.durable.clock.PartialIndex(
                "state",
                "receiver",
                "id",
                name="dcs_delivery_kept",
                where=models.Q(("state", 4), ("state", 6), _connector="OR"),
            ),
        ),
    ]
