"""What is patched, when, and by whom else; the accelerated model as upstream's callers see it."""
