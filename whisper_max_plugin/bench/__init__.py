"""``whisper-max bench``: upstream, this plugin and its peers on the same work, measured side by side.

Nothing is imported here, since a subject's process imports from this package and should hold its own libraries alone.
"""
