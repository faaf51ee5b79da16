"""Building blocks that methods share: adapters, the inner loop, memory banks, weight generators.

Any method may import them. May import bench.contract, bench.answering and the rooms below them.
"""
