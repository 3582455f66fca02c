from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("flights", "0001_initial")]

    operations = [
        migrations.DeleteModel(name="Receipt"),  # with its rows, which only the demonstration that wrote them needed
        migrations.CreateModel(
            name="Receipt",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("event_id", models.CharField(max_length=36)),
                ("receiver", models.CharField(max_length=200)),
            ],
        ),
    ]
