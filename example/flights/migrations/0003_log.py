from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("flights", "0002_receipt")]

    operations = [
        migrations.CreateModel(
            name="LogEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("flight_id", models.BigIntegerField(db_index=True)),
                ("event_id", models.CharField(max_length=36)),
                ("changes", models.JSONField()),
            ],
            options={"verbose_name_plural": "log entries"},
        ),
        migrations.AddField("receipt", "stands_for", models.PositiveIntegerField(default=1)),
    ]
