"""The side of DBOS in ``benchmarks.beside_dbos``; it runs in a virtual environment that has DBOS.

It prints "ready", and then, for each line with a number, the seconds that cancelling as many queued
workflows took.
"""

from __future__ import annotations

import logging
import sys
import time

from dbos import DBOS, DBOSClient, DBOSConfig

QUEUE = "benchmark"
"""A queue that no process takes workflows from."""


def main(url: str) -> None:
    logging.disable(logging.WARNING)
    DBOS(config=DBOSConfig(name="benchmark", system_database_url=url, run_admin_server=False))
    DBOS.launch()  # makes the tables
    DBOS.destroy()
    client = DBOSClient(system_database_url=url)
    print("ready", flush=True)
    for line in sys.stdin:
        workflows = [
            client.enqueue({"queue_name": QUEUE, "workflow_name": "wait"}).workflow_id
            for _ in range(int(line))
        ]
        begin = time.perf_counter()
        client.cancel_workflows(workflows)
        seconds = time.perf_counter() - begin
        statuses = {each.status for each in client.list_workflows(workflow_ids=workflows)}
        assert statuses == {"CANCELLED"}, statuses
        print(seconds, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
