"""Experiments: planning cells, running them anywhere, meta-training, and the store of trained weights.

May import bench.harness and everything below it.
"""
