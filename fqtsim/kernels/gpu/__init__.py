"""Triton kernels for a CUDA device and their twins in torch operations, which run anywhere with the same bits."""
