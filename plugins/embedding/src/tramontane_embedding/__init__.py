"""EmbeddingGemma and Qwen3-Embedding for tramontane."""
