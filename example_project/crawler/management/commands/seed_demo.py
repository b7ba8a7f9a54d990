"""``manage.py seed_demo``."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from crawler.crawls import start_crawl
from crawler.models import Site
from django_run_cancel.models import AbstractRun, Run
from django_run_cancel.services import cancel_runs
from django_run_cancel.states import RunStatus

ADMIN = "admin"
OPERATOR = "operator"

SITES = {
    "City museum": ("https://museum.example/", "acme"),
    "Harbour library": ("https://library.example/", "acme"),
    "Corner shop": ("https://shop.example/", "globex"),
}

PAGES: dict[str, tuple[RunStatus, ...]] = {
    "/": (RunStatus.RUNNING, RunStatus.COMPLETED),
    "/opening-hours": (RunStatus.RUNNING, RunStatus.COMPLETED),
    "/news": (RunStatus.RUNNING, RunStatus.FAILED),
    "/catalogue?page=1": (RunStatus.RUNNING, RunStatus.PAUSED),
    "/catalogue?page=2": (RunStatus.RUNNING,),
    "/catalogue?page=3": (RunStatus.RUNNING,),
    "/catalogue?page=4": (),
    "/contact": (),
}
"""The pages of a crawl that is half done, and what has become of each since it was queued."""


class Command(BaseCommand):
    """Create what there is to look at: users, sites and crawls."""

    help = (
        "Create users, sites and crawls to look at. What exists already is left as it is. "
        f"Logins: {ADMIN}/{ADMIN}, who may do everything, and {OPERATOR}/{OPERATOR}, who may "
        "look at runs and cancel them."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Create what is missing."""
        if not settings.DEBUG:
            raise CommandError("This creates users with known passwords: set DEBUG=true.")
        with transaction.atomic():
            if not User.objects.filter(username=ADMIN).exists():
                User.objects.create_superuser(ADMIN, password=ADMIN)
            operator = self.get_operator()
            for name, (base_url, customer) in SITES.items():
                site, is_new = Site.objects.get_or_create(
                    name=name,
                    defaults={"base_url": base_url, "customer": customer, "owner": operator},
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
        """Crawl a site three times: once to the end, once in part, once in vain."""
        done = start_crawl(site, PAGES)
        for run in (done, *self.pages_of(done)):
            run.mark_running()
            run.mark_completed()

        half_done = start_crawl(site, PAGES)
        half_done.mark_running()
        for page, statuses in zip(self.pages_of(half_done), PAGES.values(), strict=True):
            for status in statuses:
                page.transition_to(status)

        unwanted = start_crawl(site, PAGES)
        unwanted.mark_running()
        cancel_runs([unwanted.run_id], requested_by=site.owner, reason="The site is being moved.")

    def pages_of(self, crawl: Run) -> list[AbstractRun]:
        """Return the page runs of a crawl, in the order in which they were queued."""
        return list(Run.objects.filter(parent=crawl).order_by("pk"))
