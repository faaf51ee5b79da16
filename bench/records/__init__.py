"""Records of runs.

Offers ``schema`` (their types), ``store`` (reading and writing) and ``provenance``. May import bench.data and the small
files.
"""
