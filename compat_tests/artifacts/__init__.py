"""The cache of compiled graphs: what is found again, what is damaged, what processes share."""
