"""``manage.py seed_demo``."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from crawler.crawls import add_page, create_crawl
from crawler.models import Site
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.models import Run

ADMIN = "admin"
OPERATOR = "operator"

SITES = {
    "City museum": ("museum/", "acme"),
    "Harbour library": ("library/", "acme"),
    "Corner shop": ("shop/", "globex"),
}
"""Below which path they are, and whose customers."""

SITE_URL = "http://127.0.0.1:8001/"

PAGES = ("news", "contact", "opening-hours", "catalogue?page=1", "catalogue?page=2")


class Command(BaseCommand):
    """Create what there is to look at: users, sites and crawls of yesterday, so to speak."""

    help = (
        "Create users, sites and crawls that have ended. What exists already is left as it is, "
        "but for where the sites are. "
        f"Logins: {ADMIN}/{ADMIN}, who may do everything, and {OPERATOR}/{OPERATOR}, who may "
        "look at runs and cancel them."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--site-url",
            default=SITE_URL,
            metavar="URL",
            help="Where the local site is, of which the sites are parts; %(default)s by default.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Create what is missing."""
        if not settings.DEBUG:
            raise CommandError("This creates users with known passwords: set DEBUG=true.")
        with transaction.atomic():
            if not User.objects.filter(username=ADMIN).exists():
                User.objects.create_superuser(ADMIN, password=ADMIN)
            operator = self.get_operator()
            for name, (path, customer) in SITES.items():
                base_url = options["site_url"] + path
                site, is_new = Site.objects.update_or_create(
                    name=name,
                    defaults={"base_url": base_url},
                    create_defaults={
                        "base_url": base_url,
                        "customer": customer,
                        "owner": operator,
                    },
                )
                if is_new:
                    self.create_crawls(site)
        if options["verbosity"]:
            self.stdout.write(
                f"There are {User.objects.count()} users, {Site.objects.count()} sites "
                f"and {Run.objects.count()} runs."
            )

    def get_operator(self) -> User:
        """Return a user who may look at runs and cancel them, and nothing else."""
        operator = User.objects.filter(username=OPERATOR).first()
        if operator is None:
            operator = User.objects.create_user(OPERATOR, password=OPERATOR, is_staff=True)
            operator.user_permissions.set(
                Permission.objects.filter(
                    content_type__app_label="django_run_cancel",
                    codename__in=[
                        "cancel_run",
                        "view_run",
                        "view_cancellation",
                        "view_cancellationitem",
                    ],
                )
            )
        return operator

    def create_crawls(self, site: Site) -> None:
        """Make up two crawls: one that has ended well, and one that was never begun."""
        done = create_crawl(site)
        for page in PAGES:
            add_page(done, site.base_url + page)
        for run in (done, *Run.objects.filter(parent_id=done.pk).order_by("pk")):
            run.mark_running()
            run.mark_completed()

        unwanted = create_crawl(site)
        unwanted.mark_queued()
        cancel_runs([unwanted.run_id], requested_by=site.owner, reason="The site is being moved.")
