#!/usr/bin/env bash
# Runs a command on a Ray cluster whose nodes are on this machine, each behind a network link of its own: for what the network decides.
#
#     sudo scripts/links.sh 4 1gbit .venv/bin/python scripts/bench_merge.py --address auto
#
# Node 0 is the head, has no CPU for workers, and is where the command runs; nodes 1 to n have a CPU and the resource node<i>. A node is a namespace
# of the network with a link of that speed each way. Linux with iproute2, as root. All of it is taken down at the end.
set -euo pipefail
if [ $# -lt 3 ] || [ "$(id -u)" != 0 ]; then
    echo "usage, as root: links.sh NODES SPEED COMMAND..., as: sudo scripts/links.sh 4 1gbit .venv/bin/python scripts/bench_merge.py --address auto" >&2
    exit 2
fi
nodes="$1" speed="$2"
shift 2
ray="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/ray"

in_node() { ip netns exec "fc$1" "${@:2}"; }

take_down() {
    for i in $(seq 0 "$nodes"); do
        ip netns pids "fc$i" 2>/dev/null | xargs -r kill -9 || true
        ip netns delete "fc$i" 2>/dev/null || true
        ip link delete "fc-link$i" 2>/dev/null || true
    done
    ip link delete fc-bridge 2>/dev/null || true
}

limit() { "$@" root tbf rate "$speed" burst 256kb latency 100ms; }

trap take_down EXIT
take_down
ip link add fc-bridge type bridge
ip link set fc-bridge up
for i in $(seq 0 "$nodes"); do
    ip netns add "fc$i"
    ip link add "fc-link$i" type veth peer name eth0 netns "fc$i"
    ip link set "fc-link$i" master fc-bridge up
    in_node "$i" ip link set lo up
    in_node "$i" ip address add "10.201.0.$((i + 10))/24" dev eth0
    in_node "$i" ip link set eth0 up
    limit tc qdisc add dev "fc-link$i"
    limit in_node "$i" tc qdisc add dev eth0
done
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN="$(head -c 32 /dev/urandom | base64)"
start=("$ray" start --object-store-memory 2000000000 --disable-usage-stats)
in_node 0 "${start[@]}" --head --node-ip-address 10.201.0.10 --port 6379 --num-cpus 0 --include-dashboard false >/dev/null
for i in $(seq 1 "$nodes"); do
    in_node "$i" env FEDJAX_CORE_SITE="/tmp/bench_links/site$i/site.toml" PYTHONPATH="$(dirname "${BASH_SOURCE[0]}")" "${start[@]}" --address 10.201.0.10:6379 --node-ip-address "10.201.0.$((i + 10))" --num-cpus 1 --resources "{\"node$i\": 1}" >/dev/null
done
in_node 0 "$@"
