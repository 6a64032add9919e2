"""What fastddpm takes, and what the alternatives take: `python -m benchmarks`; `pytest benchmarks --benchmark-only`: the ops.

Three levels: kernel (an op on much data), call (an op on almost none), loop (training and sampling with a network).
"""
