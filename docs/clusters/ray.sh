#!/bin/bash
# A batch on a Ray cluster. On the first machine: bash ray.sh zoo.yaml; on each of the others, before or after:
#   ray start --address FIRST:6379
# All see the same files under the same paths, and have the same version installed.
set -euo pipefail
ray start --head --port 6379 --disable-usage-stats
trap 'ray stop' EXIT
ligo-convert batch "$1" --engine ray --address "$(hostname -I | awk '{print $1}'):6379"
