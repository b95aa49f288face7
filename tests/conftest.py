"""One thread per test process: the workers share the cores; the summation order is fixed."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A process of their own: test_accelerator.py.
collect_ignore = [] if "LSTM_FREEZE_DEVICE" in os.environ else ["on_device"]
