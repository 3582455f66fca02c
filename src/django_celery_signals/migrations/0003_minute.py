"""The table of each minute's figures."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("django_celery_signals", "0002_pause")]

    operations = [
        migrations.CreateModel(
            name="Minute",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "receiver", "minute", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("receiver", models.CharField(max_length=255)),
                ("minute", models.IntegerField()),
                ("sent", models.PositiveIntegerField(default=0)),
                ("succeeded", models.PositiveIntegerField(default=0)),
                ("failed", models.PositiveIntegerField(default=0)),
                ("retried", models.PositiveIntegerField(default=0)),
                ("discarded", models.PositiveIntegerField(default=0)),
                ("runtime", models.FloatField(default=0.0)),
                ("lag", models.FloatField(null=True)),
                ("waiting", models.PositiveIntegerField(null=True)),
            ],
            options={
                "indexes": [models.Index(fields=["minute"], name="dcs_minute_minute")],
            },
        ),
    ]
