"""Where the README's figures come from: one measurement a module, run as `python -m benchmarks.NAME`."""

import os

# as the commands of `search` do: waiting threads that spin take the cores from those that compute
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
