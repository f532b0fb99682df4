"""What models are loaded from: OpenAI's checkpoints and folders of Hugging Face, checked strictly."""
