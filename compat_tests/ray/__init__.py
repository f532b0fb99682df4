"""`whisper_max_plugin.ray`, on a cluster of this machine."""
