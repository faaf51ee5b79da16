"""Adaptation methods: one file each, and ``parts``, which they share.

The registry finds methods by reading the files. May import bench.contract, bench.answering and what those may import.
"""
