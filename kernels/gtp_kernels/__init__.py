"""The fused kernels of a GTP train step and their PyTorch twins. Knows torch and triton, nothing of gtp_fast."""
