"""The conformance suite: whether a method keeps the contract, tried in the harness's own loop.

May import bench.harness and everything below it, but not bench.run.
"""
