#!/usr/bin/env bash
# Everything that the project measures on a GPU, one thing after the other, on one that nothing else uses:
#
#     make gpu [DC_PEER=checkout] [MTT_PEER=checkout] [GLAD_PEER=checkout GLAD_SET=set] [GPU_HOURS=3]
#
# The tests of the GPU first, then speed (students, distillers, recovery), networks on all training images, and stage 1
# at its published settings, with GPU_HOURS divided among its runs. What each prints goes to results/gpu/NAME.txt too.
# What fails or does not end in its time is said, and the next one starts; the exit code is 1 then.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

out=results/gpu
prepared=data/prepared/cifar10.safetensors
share=$(awk "BEGIN { print int(${GPU_HOURS:-3} * 3600 / 16) }")
failed=0
mkdir -p "$out"

step() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2 began=$SECONDS code
    shift 2
    echo "== $name (at most $seconds s): $*"
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$out/$name.txt"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || { failed=1; echo "$name: exit code $code$([ "$code" -eq 124 ] && echo ': its time was up')"; }
    echo "== $name: $((SECONDS - began)) s"
}

python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
    || { echo "gpu: torch sees no GPU here; see: python -c 'import torch; print(torch.cuda.is_available())'"; exit 2; }

peers=(${DC_PEER:+--dc-peer "$DC_PEER"} ${MTT_PEER:+--mtt-peer "$MTT_PEER"})
step tests 900 python -m pytest -m gpu -rs tests
step students-first 120 python benchmarks/students.py --networks convnet-3 --sides plain ours
step students 1800 python benchmarks/students.py --sides plain ours ours-compiled ours-bf16 ours-bf16-compiled
step distill 1800 python benchmarks/distill.py "${peers[@]}"
step recover 3600 python benchmarks/recover.py
if [ -f "$prepared" ]; then
    if [ -n "${GLAD_PEER:-}" ] && [ -n "${GLAD_SET:-}" ]; then
        step peer-glad 1800 python benchmarks/peer_glad.py --peer "$GLAD_PEER" --set "$GLAD_SET" --prepared "$prepared"
    elif [ -n "${GLAD_PEER:-}${GLAD_SET:-}" ]; then
        failed=1
        echo "peer-glad: left out, it takes both GLAD_PEER (checkout) and GLAD_SET (a set of CIFAR-10)"
    fi
    for network in convnet-3 resnet18-dd; do
        step "full-data-$network" 900 diver teach --prepared "$prepared" --network "$network" --out "$out/$network.safetensors"
    done
    # Half for MTT at IPC 10, which is the longest: its experts, its 5000 iterations, its students.
    for run in dc:1:1 dsa:1:1 dm:1:1 dm:10:1 dc:10:1 dsa:10:1 mtt:1:2 mtt:10:8; do
        IFS=: read -r method ipc shares <<<"$run"
        step "reproduce-$method-$ipc" $((share * shares)) python benchmarks/reproduce.py --prepared "$prepared" \
            --out "$out" --runs "$method:$ipc:$((share * shares * 2 / 3))"
    done
else
    failed=1
    echo "no $prepared, so no accuracies; make it by: snakemake --cores all $prepared"
fi
exit "$failed"
