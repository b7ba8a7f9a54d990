from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models

from django_run_cancel.conf import settings


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("django_run_cancel", "0001_initial"),
        migrations.swappable_dependency(settings.RUN_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Report",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=50)),
                ("status", models.CharField(default="cancelled", max_length=20)),
                ("task_id", models.CharField(blank=True, max_length=255)),
                ("task_uuid", models.UUIDField(null=True)),
                (
                    "run",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.RUN_MODEL,
                    ),
                ),
                (
                    "only_run",
                    models.OneToOneField(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.RUN_MODEL,
                    ),
                ),
            ],
        ),
    ]
