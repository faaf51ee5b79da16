"""How every method's model answers, and how answers are scored: prompts, decoding, likelihoods, metrics.

May import bench.contract and what that may import.
"""
