"""Tests. NumPy uses one thread, as in the image: more threads would only wait for each other."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
