"""The one loop that every experiment runs: score, observe, answer; what each phase costs and what each token weighs.

May import bench.records, bench.answering, bench.contract and what those may import.
"""
