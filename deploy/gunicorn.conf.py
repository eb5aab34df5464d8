"""How gunicorn serves a function target in the image: as functions-framework starts it, but drained in time.

`functions_framework.create_app()` is the very app that the `functions-framework` command serves; the command's own
gunicorn takes its settings from nobody else, and lets a worker go on for 30 s after SIGTERM. Cloud Run gives 10 s.
"""

import os

bind = f":{os.environ.get('PORT', '8080')}"
workers = int(os.environ.get("WORKERS", "1"))
threads = int(os.environ.get("THREADS", "8"))
worker_class = "gthread"
preload_app = True  # main.py is imported once, before the fork, as the framework does: a bad setting stops the start
timeout = 0  # Cloud Run bounds a request
graceful_timeout = 8  # what is running at SIGTERM is answered, unless it takes longer
limit_request_line = 8190  # bytes; with 0, as the framework has it, a URL of any length is read into memory
limit_request_fields, limit_request_field_size = 100, 8190
loglevel = os.environ.get("GUNICORN_LOG_LEVEL", "error")
control_socket_disable = True  # nobody to control it, and no folder of its own to write to
