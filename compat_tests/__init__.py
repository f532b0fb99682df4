"""Tests against upstream: result parity, the seam, activation, bad input."""
