"""What a method is: its hooks and settings, gradient methods, meta-training, and the registry of all methods.

May import bench.lm, bench.data and the small files. A method author needs nothing else of bench.
"""
