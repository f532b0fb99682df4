"""Tests against upstream, which runs beside the plugin; each folder has a part of it."""
