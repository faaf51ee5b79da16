"""The base model: where checkpoints are, loading, tokens, windows, exact log-probabilities and restoring the weights.

May import bench.data and the small files.
"""
