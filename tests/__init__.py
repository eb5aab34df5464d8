"""Tests. NumPy uses one thread, as in the container image: more threads would only contend with each other."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
