"""Ray clusters of two nodes on this machine, for tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

HAS_RAY = find_spec("ray") is not None
STORE = 100 << 20
"""Bytes of each node's store of objects. They are not taken before they are used."""


@final
class RayCluster:
    """A cluster of two nodes, or more, with two processors each."""

    def __init__(self, cluster: Any):
        self._cluster = cluster
        self.address: str = cluster.address

    def add_node(self, **resources: float) -> Any:
        return self._cluster.add_node(num_cpus=2, object_store_memory=STORE, resources=resources)

    def kill(self, node: Any) -> None:
        """Kill all processes of a node."""
        self._cluster.remove_node(node, allow_graceful=False)

    def actors(self) -> set[int]:
        """Return the processes that are our actors, in this cluster and no other one."""
        # Only the files that an actor has open, its logs, tell of which cluster it is.
        logs = self._cluster.head_node.get_session_dir_path()
        found: set[int] = set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                if (entry / "cmdline").read_bytes().startswith(b"ray::RayActor"):
                    opened = {str(one.readlink()) for one in (entry / "fd").iterdir()}
                    if any(one.startswith(logs) for one in opened):
                        found.add(int(entry.name))
            except OSError:  # it has ended
                continue
        return found


@contextmanager
def ray_cluster() -> Generator[RayCluster]:
    """Start a cluster, and end all of its processes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_SCHEDULER_EVENTS"] = "0"
    tools: Any = import_module("ray.cluster_utils")
    # No processes before they are needed: most tests need one.
    config = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
    head = {"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)  # each node that is started replaces it
    cluster = tools.Cluster(initialize_head=True, head_node_args={**head, "_system_config": config})
    try:
        found = RayCluster(cluster)
        found.add_node(side=100)
        yield found
    finally:
        import_module("ray").shutdown()
        cluster.shutdown()
        signal.signal(signal.SIGTERM, before)
