"""What models are loaded from, and what is refused."""
