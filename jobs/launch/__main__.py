"""Run the supervisor: `python -m jobs.launch job.json`."""

import sys

from orchestrator.checkout import require_ours

require_ours()  # before the modules of another `kernels` can be imported

from jobs.launch.supervisor import main  # noqa: E402

sys.exit(main())
