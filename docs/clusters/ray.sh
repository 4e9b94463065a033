#!/bin/bash
# A batch on a Ray cluster. On the first machine:  bash ray.sh zoo.yaml
# On each of the others, before or after:          bash ray.sh --join FIRST
# Ray starts work on a machine with what `ray start` had there: neither the directory nor the environment of the command on the first
# machine goes along. So every machine needs the same files under the same paths, the same version installed, and what the work needs of
# the environment: its own HF_TOKEN, and an HF_HOME that all share.
set -euo pipefail
port=6379
wait_minutes=10   # for the first machine, which a scheduler may give later than the others

answers() { timeout 5 bash -c "exec 3<>'/dev/tcp/$1/$port'" 2> /dev/null; }

if [ "$1" = --join ]; then
    until=$((SECONDS + 60 * wait_minutes))
    until answers "$2"; do
        if [ "$SECONDS" -ge "$until" ]; then
            echo "nobody answers at $2:$port" >&2
            exit 1
        fi
        sleep 2
    done
    exec ray start --address "$2:$port" --disable-usage-stats --block
fi
ray start --head --port "$port" --disable-usage-stats
trap 'ray stop' EXIT
ligo-convert batch "$1" --engine ray --address "$(hostname -I | awk '{print $1}'):$port"
