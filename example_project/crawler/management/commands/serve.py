"""``manage.py serve``, behind ``make serve``."""

from __future__ import annotations

import errno
import json
import signal
import socket
import sys
from contextlib import ExitStack
from io import StringIO
from typing import Any

from django.contrib.staticfiles.management.commands import runserver
from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser

from crawler.crawls import start_crawl
from crawler.interrupts import handle_ends, interrupt
from crawler.local_site import local_site
from crawler.management.commands.seed_demo import ADMIN, OPERATOR, SITES
from crawler.models import Site
from crawler.processes import stop_jobs, workers
from django_run_cancel.models import Run

SLOW_PAGES = 8
SLOW_SECONDS = 1_800

BANNER = """\
Site   {url}/
API    {url}/docs/
Admin  {url}/admin/
Login  {admin} / {admin}, or {operator} / {operator}, who may only look and cancel
Key    {key}
       for the runs of {tenant}; it works for a day. At {url}/docs/, Authorize with it;
       POST /v1/runs/cancel has a field of its own for it, x-api-key

The sites are being crawled, and their slow pages take half an hour. To cancel the run
"{crawl}" and all its pages, paste this:

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
        handle_ends(interrupt)
        try:
            self.check_port()
            call_command("migrate", verbosity=0)
            with ExitStack() as self.stack:
                try:
                    super().run(**options)
                finally:
                    # Nothing is to interrupt the cleaning up, which takes a few seconds.
                    handle_ends(signal.SIG_IGN)
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
        """Start what does the work, now that the port is ours, and tell what there is to try."""
        site = self.stack.enter_context(local_site(SLOW_PAGES, SLOW_SECONDS))
        call_command("seed_demo", site_url=site.url, verbosity=0)
        self.stack.callback(stop_jobs, Run.objects.all(), force=True)
        self.stack.enter_context(workers())
        # At first they are asked, so that the runs can say that they have ended.
        self.stack.callback(stop_jobs, Run.objects.all(), force=False)
        crawl, *_ = [start_crawl(Site.objects.get(name=name)) for name in SITES]
        key = create_key(crawl.tenant)
        host = f"[{self.addr}]" if self.use_ipv6 else self.addr
        self.stdout.write(
            BANNER.format(
                url=f"http://{host}:{server_port}",
                admin=ADMIN,
                operator=OPERATOR,
                key=key,
                tenant=crawl.tenant,
                crawl=crawl,
                body=json.dumps({"run_ids": [crawl.run_id]}),
            )
        )
        self.stdout.flush()


def create_key(tenant: str) -> str:
    """Return a new API key for a tenant."""
    output = StringIO()
    call_command(
        *("create_api_key", "make serve", "--tenant", tenant, "--expires-in", "1d"),
        stdout=output,
        stderr=StringIO(),
    )
    return output.getvalue().strip()
