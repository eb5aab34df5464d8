"""Serve the given buckets until interrupted: python -m devtools.gcs PORT BUCKET..."""

from __future__ import annotations

import sys
import threading

from devtools.gcs import Cloud


def main(arguments: list[str]) -> None:
    """Serve the given buckets until interrupted."""
    port, *buckets = arguments
    with Cloud(int(port)) as cloud:
        for bucket in buckets:
            cloud.create_bucket(bucket)
        print(f"STORAGE_EMULATOR_HOST={cloud.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
