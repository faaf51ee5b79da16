"""What is kept of a run: the types of records, reading and writing them, and where a number comes from.

May import bench.data and the small files.
"""
