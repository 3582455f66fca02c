"""Receivers that are paused."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("django_celery_signals", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="Pause",
            fields=[
                ("receiver", models.CharField(max_length=255, primary_key=True, serialize=False)),
                ("since", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.AlterField(
            model_name="delivery",
            name="state",
            field=models.PositiveSmallIntegerField(
                choices=[(1, "ready"), (2, "sent"), (3, "running"), (4, "failed"), (5, "done"), (6, "paused")]
            ),
        ),
    ]
