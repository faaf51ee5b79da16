"""The conformance suite: checks that a method keeps the contract, run in the harness's own loop.

Offers ``suite`` to the command line and to tests. May import bench.harness and the rooms below it, but not bench.run.
"""
