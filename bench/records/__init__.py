"""Records of runs.

Offers ``schema`` (their types), ``store`` (reading and writing), ``summary`` (scores from events) and ``provenance``.
May import bench.answering, bench.data and the small files.
"""
