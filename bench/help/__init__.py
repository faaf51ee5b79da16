"""Help on the command line.

Offers ``describe``, ``doctor``, ``readiness`` (of an experiment), ``citations`` and ``skeleton``. May import every
other room of bench.
"""
