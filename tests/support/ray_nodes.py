"""A program that runs a Ray cluster of two nodes on this machine, each with its own processes.

It prints the cluster's address, kills the second node when it reads the line `kill`, and ends at the end of stdin. It is a separate
process because Ray emits warnings, which are errors in tests.
"""

from __future__ import annotations

import os
import sys

# With Ray's default niceness, its workers would get no CPU time beside other tests.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  as Ray spells it
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

# Detect a lost node within two seconds instead of a minute.
PATIENCE = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


def main() -> None:
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": PATIENCE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        print(cluster.address, flush=True)
        for line in sys.stdin:
            if line.strip() == "kill":
                cluster.remove_node(second, allow_graceful=False)
                print("killed", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
