#!/usr/bin/env bash
# One training job as N processes on this machine, joined by jax.distributed over loopback.
#
#   launch/local.sh N [--] <r2rank arguments>
#   launch/local.sh 2 sft --config configs/quickstart.py --run-dir runs/two --mesh.data 2
#
# Process i runs `r2rank <arguments>` with
#   R2RANK_COORDINATOR=127.0.0.1:PORT   R2RANK_PROCESSES=N   R2RANK_PROCESS=i
# and its lines are printed with the prefix "[i] ". If one process fails, the others are stopped and its exit
# code is returned. Ctrl-C stops all of them.
#
# Settings, from the environment:
#   R2RANK_COMMAND    command to run instead of `r2rank` (split at blanks)
#   R2RANK_TIMEOUT_S  time limit of the whole job, which then exits with 124           (default: none)
#   R2RANK_GRACE_S    seconds between SIGTERM and SIGKILL                              (default: 10)
#   R2RANK_THREADS    CPU threads of each process                             (default: CPUs / N)
#   JAX_PLATFORMS     (default: cpu)
set -euo pipefail

usage() {
  echo "usage: launch/local.sh N [--] <r2rank arguments>, N >= 1" >&2
  exit 2
}

[[ $# -ge 2 && "$1" =~ ^[1-9][0-9]*$ ]] || usage
processes=$1
shift
if [[ $1 == -- ]]; then shift; fi
[[ $# -ge 1 ]] || usage

read -r -a command <<<"${R2RANK_COMMAND:-r2rank}"
limit_s=${R2RANK_TIMEOUT_S:-}
grace_s=${R2RANK_GRACE_S:-10}
processors=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
share=$((processors / processes))
threads=${R2RANK_THREADS:-$((share > 0 ? share : 1))}

# From below the kernel's range of ephemeral ports, so that a free port stays free until it is used.
free_port() {
  local port
  for _ in {1..100}; do
    port=$((10000 + RANDOM % 20000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
  echo "local.sh: found no free port on 127.0.0.1 in 100 attempts" >&2
  return 1
}

pids=()      # process ids; each process leads its own process group
prefixers=() # ids of the `sed` processes that print their output
pipes=$(mktemp -d)

signal_all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill "-$1" -- "-$pid" 2>/dev/null || true # to the whole group, which may have ended already
  done
}

any_alive() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    if kill -0 -- "-$pid" 2>/dev/null; then return 0; fi
  done
  return 1
}

end_all() {
  local deadline=$((SECONDS + grace_s))
  signal_all TERM
  while any_alive && ((SECONDS < deadline)); do sleep 0.1; done
  signal_all KILL
}

finish() {
  local code=$?
  trap - EXIT INT TERM
  end_all
  wait ${prefixers[@]+"${prefixers[@]}"} 2>/dev/null || true # they print the rest and end when their pipe closes
  rm -rf "$pipes"
  exit "$code"
}
trap finish EXIT
trap 'echo "local.sh: interrupted, stopping all processes" >&2; exit 130' INT
trap 'echo "local.sh: received SIGTERM, stopping all processes" >&2; exit 143' TERM

port=$(free_port)
for ((i = 0; i < processes; i++)); do
  mkfifo "$pipes/$i"
  # `sed` ignores Ctrl-C, so that the last lines of a process are still printed.
  (trap '' INT TERM && exec sed -u "s/^/[$i] /" <"$pipes/$i") &
  prefixers+=("$!")
  set -m # each process leads its own group, so that stopping the group stops its children and nothing else
  env R2RANK_COORDINATOR="127.0.0.1:$port" R2RANK_PROCESSES="$processes" R2RANK_PROCESS="$i" \
    JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" \
    NPROC="$threads" OMP_NUM_THREADS="$threads" OPENBLAS_NUM_THREADS="$threads" \
    "${command[@]}" "$@" </dev/null >"$pipes/$i" 2>&1 &
  pids+=("$!")
  set +m
done

running=("${!pids[@]}")
while ((${#running[@]} > 0)); do
  if [[ -n $limit_s ]] && ((SECONDS >= limit_s)); then
    echo "local.sh: reached the limit of R2RANK_TIMEOUT_S=$limit_s seconds, stopping all processes" >&2
    exit 124
  fi
  still=()
  for i in "${running[@]}"; do
    if kill -0 "${pids[$i]}" 2>/dev/null; then
      still+=("$i")
      continue
    fi
    code=0
    wait "${pids[$i]}" || code=$?
    if ((code != 0)); then
      echo "local.sh: process $i failed with exit code $code, stopping the others" >&2
      exit "$code"
    fi
  done
  running=(${still[@]+"${still[@]}"})
  sleep 0.2
done
