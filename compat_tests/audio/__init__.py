"""Recordings as samples and spectrograms, with upstream's own or without ffmpeg."""
