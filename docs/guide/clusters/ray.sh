#!/bin/bash
# A batch on a Ray cluster. On the first machine:  bash ray.sh zoo.yaml
# On each of the others, before or after:          bash ray.sh --join FIRST
# Every machine needs the same files under the same paths and the same version installed. Workers get the command's working directory,
# HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN. Set any other variable they need, such as a shared HF_HOME, where you run `ray start`.
set -euo pipefail
port=6379
wait_minutes=10   # for the first machine, which may start later than the others

answers() { timeout 5 bash -c "exec 3<>'/dev/tcp/$1/$port'" 2> /dev/null; }

if [ "$1" = --join ]; then
    until=$((SECONDS + 60 * wait_minutes))
    until answers "$2"; do
        if [ "$SECONDS" -ge "$until" ]; then
            echo "no answer from $2:$port" >&2
            exit 1
        fi
        sleep 2
    done
    exec ray start --address "$2:$port" --disable-usage-stats --block
fi
ray start --head --port "$port" --disable-usage-stats
trap 'ray stop' EXIT
ligo-convert batch "$1" --engine ray --address "$(hostname -I | awk '{print $1}'):$port"
