"""What is learned from: batches, latents, embeddings, noise and losses."""
