"""The benchmarks: scripts that measure the figures in README and docs."""
