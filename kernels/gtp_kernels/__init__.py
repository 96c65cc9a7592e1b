"""The fused kernels of a GTP train step and their small functions in PyTorch. Imports nothing of gtp_fast."""
