"""``python -m benchmarks.idle``: what a relay that has nothing to do takes of a processor, with PostgreSQL's part."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from threading import Thread

from chaos.report import circumstances

from .__main__ import RESULTS, servers
from .scale import processor_time

SECONDS = 10.0
IDLES = (1.0, 0.05, 0.01, 0.002)


def main() -> int:
    """Measure, and write it down."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site.settings")
    lines = ["| --idle | the relay | PostgreSQL |", "| ---: | ---: | ---: |"]
    with servers(("postgres", "rabbitmq")) as (_, started):
        os.environ["BENCHMARKS_SITE"] = json.dumps({name: server.port for name, server in started.items()})
        site = import_module("benchmarks.site.ready")
        site.make_ready()
        from django_celery_signals import Relay

        for idle in IDLES:
            relay = Relay(app=site.app, idle=idle)
            thread = Thread(target=relay.run)
            thread.start()
            time.sleep(1)  # it has connected
            before = time.process_time(), processor_time([started["postgres"].pid])
            time.sleep(SECONDS)
            after = time.process_time(), processor_time([started["postgres"].pid])
            relay.stop()
            thread.join()
            shares = " | ".join(f"{(new - old) / SECONDS:.1%}" for old, new in zip(before, after, strict=True))
            lines.append(f"| {idle} | {shares} |")
            print(lines[-1])
    facts = "\n".join(f"- {name}: {fact}" for name, fact in circumstances().items())
    table, command = "\n".join(lines), "- command: python -m benchmarks.idle"
    (RESULTS / "idle.md").write_text(
        f"# A relay that has nothing to do, in shares of one core\n\n{table}\n\n{command}\n{facts}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
