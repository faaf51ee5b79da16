"""Kill -9 of a worker, a node or the driver of a run on a Ray cluster of two nodes: nothing is lost or there twice."""

from __future__ import annotations

import atexit
import os
import random
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil

from bench.run import claims
from tests.attack.attacks import Attack, Try
from tests.attack.kills import emptied, small_run

Victim = Literal["worker", "node", "driver"]
SECONDS = 25.0
"""The latest moment at which something is killed; most of that is the start of the run."""


def prepare(victim: Victim, folder: Path) -> Try:
    """Runs on the cluster, of each of which one process, or all of a node, is killed."""
    os.environ["RAY_TQDM_PATCH_PRINT"] = "0"
    from ray.cluster_utils import Cluster

    command, check = small_run(folder)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    atexit.register(cluster.shutdown)
    cluster.add_node(num_cpus=1)

    def attempt(rng: random.Random) -> str | None:
        where = emptied(folder / "attacked")
        options = ["--executor", "ray", "--ray-address", cluster.address]
        driver = psutil.Popen([*command(where), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, SECONDS))
        if victim == "driver":
            driver.kill()
        elif victim == "node":
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        elif workers := _workers():
            rng.choice(workers).kill()
        driver.wait(300)
        _, alive = psutil.wait_procs(_workers(), 30)
        if victim == "node":
            cluster.add_node(num_cpus=1)
        if alive:
            return f"{len(alive)} workers outlived the run"
        if running := claims.running(where / "runs"):
            return f"{len(running)} cells are claimed after the end of the run"
        if victim != "driver" and driver.returncode:
            return f"the run ended with exit code {driver.returncode}"
        return check(where)

    return attempt


def _workers() -> list[Any]:
    """The processes of this machine's Ray clusters that hold a worker of a run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::_Worker"):
            found.append(process)
    return found


ATTACKS: dict[str, Attack] = {
    f"kill -9 of a Ray {victim}": partial(prepare, victim) for victim in ("worker", "node", "driver")
}
