"""Triton kernels of LaSt pooling; pooling_triton.py launches them."""
