"""``manage.py serve``, behind ``make serve``."""

from __future__ import annotations

import errno
import json
import socket
import sys
from io import StringIO
from typing import Any

from django.contrib.staticfiles.management.commands import runserver
from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser

from crawler.crawls import start_crawl
from crawler.management.commands.seed_demo import ADMIN, OPERATOR, PAGES, SITES
from crawler.models import Site
from django_run_cancel.models import AbstractRun, Run
from django_run_cancel.states import RunType

BANNER = """\
Site   {url}/
API    {url}/docs/
Admin  {url}/admin/
Login  {admin} / {admin}, or {operator} / {operator}, who may only look and cancel
Key    {key}
       for the runs of {tenant}; it works for a day

To cancel the run "{crawl}" and all its pages, paste this:

curl -i {url}/v1/runs/cancel \\
  -H 'Content-Type: application/json' \\
  -H 'x-api-key: {key}' \\
  -d '{body}'

Press Ctrl-C to stop.
"""


class Command(runserver.Command):
    """Prepare all that is needed to try the example, and serve it."""

    help = "Migrate, seed, create an API key, and serve the example until Ctrl-C is pressed."

    addr: str
    port: str
    use_ipv6: bool

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments: those of runserver."""
        super().add_arguments(parser)
        # With the reloader, everything would be prepared twice.
        parser.set_defaults(use_reloader=False)

    def run(self, **options: Any) -> None:
        """Prepare, and run the server."""
        try:
            self.check_port()
            call_command("migrate", verbosity=0)
            call_command("seed_demo", verbosity=0)
            self.crawl = get_crawl()
            self.key = create_key(self.crawl.tenant)
            super().run(**options)
        except KeyboardInterrupt:
            sys.exit(130)

    def check_port(self) -> None:
        """Check that the port is free, before anything is written.

        Raises:
            CommandError: It is not.
        """
        family = socket.AF_INET6 if self.use_ipv6 else socket.AF_INET
        try:
            socket.create_server((self.addr, int(self.port)), family=family).close()
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            problem = "is taken" if taken else f"cannot be used: {error}"
            raise CommandError(
                f"Port {self.port} {problem}\nName another one, for example: make serve PORT=8001"
            ) from None

    def on_bind(self, server_port: int) -> None:
        """Tell what there is to try, now that the server listens."""
        host = f"[{self.addr}]" if self.use_ipv6 else self.addr
        self.stdout.write(
            BANNER.format(
                url=f"http://{host}:{server_port}",
                admin=ADMIN,
                operator=OPERATOR,
                key=self.key,
                tenant=self.crawl.tenant,
                crawl=self.crawl,
                body=json.dumps({"run_ids": [self.crawl.run_id]}),
            )
        )
        self.stdout.flush()


def get_crawl() -> AbstractRun:
    """Return a crawl that can still be cancelled, queueing one when there is none left."""
    site = Site.objects.get(name=next(iter(SITES)))
    crawls = Run.objects.filter(tenant=site.customer, run_type=RunType.WORKFLOW)
    return crawls.active().order_by("-pk").first() or start_crawl(site, PAGES)


def create_key(tenant: str) -> str:
    """Return a new API key for a tenant."""
    output = StringIO()
    call_command(
        *("create_api_key", "make serve", "--tenant", tenant, "--expires-in", "1d"),
        stdout=output,
        stderr=StringIO(),
    )
    return output.getvalue().strip()
