"""Graphs and kernels for NVIDIA GPUs without one, and the validation of a machine that has one."""
