"""Where the README's figures come from: one measurement a module, run as `python -m benchmarks.NAME`."""
