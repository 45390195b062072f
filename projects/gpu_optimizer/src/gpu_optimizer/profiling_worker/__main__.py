"""Entry point of the process that runs one job; see `profiling_worker.child`."""

import sys

from gpu_optimizer.profiling_worker.child import main

sys.exit(main())
