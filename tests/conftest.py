"""One thread: the tests' tensors are tiny, and threads that wait for each other on a busy machine cost ten times more.

Set before torch is imported, and inherited by the processes that tests start.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
