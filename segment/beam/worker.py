"""A worker process: one model, one memory budget and one pool of threads, shared by all bundles of the process."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from apache_beam.utils.shared import Shared

from segment import container
from segment.bucket.backfill import WORKERS
from segment.formats import Format
from segment.loading import Batch
from segment.options import Options
from segment.service import Service
from segment.settings import PREFIX, Settings


@dataclass(frozen=True, eq=False)
class Process:
    """The service of a worker process, and the threads that segment photos with it."""

    service: Service
    pool: ThreadPoolExecutor


@dataclass(frozen=True)
class Worker:
    """The parameters from which a worker process loads its service.

    `environment`: the settings of the process that started the pipeline. Others are taken from the worker's own
    environment, for example the model and the cache in its image. `formats`: formats of the files per photo. `options`:
    unparsed options of all photos. `processes`: number of processes that share the memory and the CPUs of a machine.
    """

    environment: Mapping[str, str]
    formats: tuple[Format, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    handle: Shared = field(default_factory=Shared)

    def process(self) -> Process:
        """This process, whose model is loaded on first use. Raises SettingsError, OptionError, ModelError."""
        return self.handle.acquire(self._load)  # type: ignore[no-any-return]

    def settings(self) -> Settings:
        """The settings of this process. Raises SettingsError."""
        own = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
        settings = Settings.from_environment({**own, **self.environment})
        if self.processes > 1:  # on a machine that is used for nothing else
            settings = replace(
                settings,
                memory=container.memory_limit(settings.memory or container.machine_memory()) // self.processes,
                threads=settings.threads or max(1, container.cpus() // self.processes),
            )
        if self.formats:
            settings = replace(settings, output_formats=self.formats)
        return replace(settings, wait_seconds=math.inf, queue=WORKERS)

    def _load(self) -> Process:
        settings = self.settings()
        service = Service(settings, Batch(Options.parse(self.options, settings), WORKERS))
        service.load()
        return Process(service, ThreadPoolExecutor(WORKERS))
