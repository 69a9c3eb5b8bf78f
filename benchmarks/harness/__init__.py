"""What the benchmarks share: payloads, server processes, measuring, statistics, and what becomes of the figures."""
