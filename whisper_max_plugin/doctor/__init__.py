"""``whisper-max doctor``: what is wrong with an installation, and whether its graphs compute what torch does."""
