"""Upstream's own tests, unedited."""
