"""The command line: a process of our own, which judges many small products.

OpenBLAS reads its number of threads when NumPy is imported.  Threads that wait for work spin, and
take the cores from the implementation that is judged: on two cores a third of all CPU time.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
