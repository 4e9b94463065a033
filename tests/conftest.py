"""What holds for every test: signals as a terminal gives them, one thread a process, a warm command line to fork from.

The environment is set before anything imports torch, which reads it once.
"""

from __future__ import annotations

import os
import signal

# `nohup`, cron and many CI runners start programs with SIGINT ignored, and every child inherits that: a test that interrupts a run
# would wait for an end that never comes. A handler of Python's own is reset to the default action when a child starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Models of a few thousand parameters gain nothing from threads, which spin while other test processes want the processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test asks for more, they sleep while they wait, as those of the command line do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
