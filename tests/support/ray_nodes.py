"""A Ray cluster of two nodes on this machine, each with its own processes, as a program.

Prints the cluster's address; then kills the second node at the line `kill` on stdin, and ends at the end of stdin.
A process of its own, as Ray warns of this and that, and tests take warnings for errors.
"""

from __future__ import annotations

import os
import sys

# Beside other tests its workers would get no processor at the niceness they have by default.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  as Ray spells it
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

# A node that is gone is noticed within two seconds, not within a minute.
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
