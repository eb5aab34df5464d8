"""The tests run with one thread for NumPy's products, as the image does: more only wait for each other here."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
