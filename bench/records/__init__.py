"""Records of runs.

Offers ``schema`` (their types), ``store`` (reading and writing), ``boards`` (names), ``summary`` (scores from events),
``check`` (that scores follow from the records), ``comparability``, ``tuning`` (the choice among trials),
``provenance``, ``published`` (records of an experiment, without its data), ``packed`` (these as one archive),
``submission`` (a row for somebody else's board) and ``imported`` (such rows).
May import bench.answering, bench.data and the small files.
"""
