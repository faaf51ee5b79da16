"""What methods share: adapters, inner loops, memory banks, generators. No module of the harness imports it.

May import bench. A part belongs to no single method.
"""
