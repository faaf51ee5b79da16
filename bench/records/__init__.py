"""Records of runs.

Offers ``schema`` (their types), ``store`` (reading and writing), ``boards`` (names), ``summary`` (scores from events),
``check`` (that scores follow from the records), ``provenance``, ``published`` (records of an experiment, without its
data) and ``submission`` (a row for somebody else's board).
May import bench.answering, bench.data and the small files.
"""
