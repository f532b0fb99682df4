"""Devices, threads and recordings, by stand-ins for a GPU on the CPU."""
