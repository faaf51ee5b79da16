"""The conformance suite: checks that a method keeps the contract, run in the harness's own loop.

Offers ``process`` and ``explanations`` to the command line, and ``suite`` to tests. May import bench.harness and the
rooms below it, but not bench.run.
"""
