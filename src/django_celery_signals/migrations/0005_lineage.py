"""What caused a delivery. The depth has a default in the database, for senders that do not know of it yet."""

from django.db import migrations, models

import django_celery_signals.durable.clock


class Migration(migrations.Migration):
    dependencies = [("django_celery_signals", "0004_permissions")]

    operations = [
        migrations.AddField(
            model_name="delivery", name="depth", field=models.SmallIntegerField(default=0, db_default=0)
        ),
        migrations.AddField(model_name="delivery", name="parent_id", field=models.CharField(max_length=36, null=True)),
        migrations.AddField(model_name="delivery", name="root_id", field=models.CharField(max_length=36, null=True)),
        migrations.AddIndex(
            model_name="delivery",
            index=django_celery_signals.durable.clock.PartialIndex(
                "parent_id", "id", name="dcs_delivery_parent", where=models.Q(("parent_id__isnull", False))
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=django_celery_signals.durable.clock.PartialIndex(
                "root_id", "id", name="dcs_delivery_root", where=models.Q(("root_id__isnull", False))
            ),
        ),
    ]
