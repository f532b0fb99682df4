"""The package, its pages, its example and its weights."""
