"""Entry point of the process that tries batch sizes; see `batch_probing.child`."""

import sys

from gpu_optimizer.batch_probing.child import main

sys.exit(main())
