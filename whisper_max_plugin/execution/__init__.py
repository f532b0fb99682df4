"""Graphs on a device: compiled, cached, bound to weights, and run on torch tensors."""
