"""What transformers and sentence-transformers answer, run directly: what this project is held against."""
