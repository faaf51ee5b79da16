"""Records of runs.

Offers ``schema`` (their types), ``store`` (reading and writing), ``summary`` (scores from events), ``provenance`` and
``published`` (records of an experiment without texts).
May import bench.answering, bench.data and the small files.
"""
