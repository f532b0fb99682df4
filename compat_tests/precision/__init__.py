"""Rounded numbers, on request, and what they are bounded by."""
