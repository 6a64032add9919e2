"""Benchmarks, one file a stage: `pytest benchmarks --benchmark-only`, or `python -m benchmarks` for one table with ratios."""
