"""Documents, questions and streams: from the files of a data set to what flows through the benchmark.

May import the small files of bench (errors, seeds, paths, files, machine, hashing), and nothing above them.
"""
