"""Faster ways to the LaSt token: cpu.py, which is used by itself, and cuda.py, which fused_pool.py turns on."""
