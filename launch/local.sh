#!/usr/bin/env bash
# One job as N processes on this machine, joined over the loopback interface.
#
#   launch/local.sh N [--] <r2rank arguments>
#   launch/local.sh 2 sft --config configs/quickstart.py --run-dir runs/two --mesh.data 2
#
# Process i runs `r2rank <arguments>` with the variables of README.md; its lines are printed with the prefix "[i] ".
#
# Exit codes: 0 done; 2 refused, running it again is of no use; 75 stopped as told, the same command goes on; 124 the
# time limit; any other: failed. Ctrl-C and SIGTERM stop the processes, which commit their work first; a second one
# kills them.
#
# Settings, from the environment:
#   R2RANK_RESTARTS   times that a failed job is started again, after 1, 2, 4, ... 60 seconds  (default: 0)
#                     If it is 1 or more, a job that ends with 75 without this script being told to stop starts again.
#   R2RANK_DEVICES    devices of each process                   (default: its share of the GPUs; one CPU device)
#   R2RANK_TIMEOUT_S  time limit of the whole job, which then ends with 124                    (default: none)
#   R2RANK_GRACE_S    seconds that processes have to commit before they are killed             (default: 120)
#   R2RANK_THREADS    CPU threads of each process                                        (default: CPUs / N)
#   R2RANK_COMMAND    command to run instead of `r2rank` (split at blanks)
set -euo pipefail

usage() {
  echo "usage: launch/local.sh N [--] <r2rank arguments>, N >= 1" >&2
  exit 2
}

refuse() {
  echo "local.sh: $1" >&2
  exit 2
}

# The number in the variable $1, or $2 if it is not set.
setting() {
  local value=${!1:-$2}
  [[ $value =~ ^[0-9]+$ ]] || refuse "$1 must be a whole number, got '$value'"
  echo "$value"
}

[[ $# -ge 2 && "$1" =~ ^[1-9][0-9]*$ ]] || usage
processes=$1
shift
if [[ $1 == -- ]]; then shift; fi
[[ $# -ge 1 ]] || usage

read -r -a command <<<"${R2RANK_COMMAND:-r2rank}"
restarts=$(setting R2RANK_RESTARTS 0)
limit_s=$(setting R2RANK_TIMEOUT_S 0)
grace_s=$(setting R2RANK_GRACE_S 120)
processors=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
share=$((processors / processes))
threads=$(setting R2RANK_THREADS $((share > 0 ? share : 1)))
settle_s=8 # for the other processes to end by themselves, once one has failed

gpus() {
  if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
    echo 0
  elif [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l
  else
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true
  fi
}

devices=$(setting R2RANK_DEVICES 0)
if ((devices == 0 && processes > 1)); then
  found=$(gpus)
  if ((found > 0 && found < processes)); then
    refuse "$processes processes need at least as many GPUs, found $found; start fewer, or set JAX_PLATFORMS=cpu"
  fi
  devices=$((found / processes))
fi

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
  refuse "found no free port on 127.0.0.1 in 100 attempts"
}

told=0       # signals that this script has received
pids=()      # process ids; each process leads its own process group
prefixers=() # ids of the `sed` processes that print their output
pipes=$(mktemp -d)

kill_all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -KILL -- "-$pid" 2>/dev/null || true # to the whole group, which may have ended already
  done
}

# To the processes alone: their own worker processes must go on until the work is committed.
ask_to_stop() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do kill -TERM "$pid" 2>/dev/null || true; done
}

on_signal() {
  told=$((told + 1))
  if ((told > 1)); then
    echo "local.sh: received a second signal, killing all processes" >&2
    exit $((128 + $1))
  fi
  echo "local.sh: stopping all processes after a commit; a second signal kills them" >&2
  ask_to_stop
}

finish() {
  local code=$?
  trap '' EXIT INT TERM
  kill_all
  wait ${prefixers[@]+"${prefixers[@]}"} 2>/dev/null || true # they print the rest and end when their pipe closes
  rm -rf "$pipes"
  exit "$code"
}
trap finish EXIT
trap 'on_signal 2' INT
trap 'on_signal 15' TERM

start() {
  local i port variables
  port=$(free_port)
  pids=()
  prefixers=()
  for ((i = 0; i < processes; i++)); do
    rm -f "$pipes/$i"
    mkfifo "$pipes/$i"
    # `sed` ignores Ctrl-C, so that the last lines of a process are still printed.
    (trap '' INT TERM && exec sed -u "s/^/[$i] /" <"$pipes/$i") &
    prefixers+=("$!")
    variables=(
      R2RANK_COORDINATOR="127.0.0.1:$port" R2RANK_PROCESSES="$processes" R2RANK_PROCESS="$i"
      NPROC="$threads" OMP_NUM_THREADS="$threads" OPENBLAS_NUM_THREADS="$threads"
    )
    if ((devices > 0)); then
      variables+=(R2RANK_LOCAL_DEVICES="$(seq -s, $((i * devices)) $(((i + 1) * devices - 1)))")
    fi
    set -m # each process leads its own group, so that killing the group kills its children and nothing else
    env "${variables[@]}" "${command[@]}" "$@" </dev/null >"$pipes/$i" 2>&1 &
    pids+=("$!")
    set +m
  done
  if ((told > 0)); then ask_to_stop; fi # a signal while they were being started
}

# Wait for all processes, and set `result`. Once one has ended with another code than 0, the others must end as well.
supervise() {
  local i code codes=() running=("${!pids[@]}") still deadline=0 first=0 killed=0
  while ((${#running[@]} > 0)); do
    if ((limit_s > 0 && SECONDS >= limit_s)); then
      echo "local.sh: reached the limit of R2RANK_TIMEOUT_S=$limit_s seconds, killing all processes" >&2
      exit 124
    fi
    if ((told > 0 && deadline == 0)); then deadline=$((SECONDS + grace_s)); fi
    still=()
    for i in "${running[@]}"; do
      if kill -0 "${pids[$i]}" 2>/dev/null; then
        still+=("$i")
        continue
      fi
      code=0
      wait "${pids[$i]}" || code=$?
      codes+=("$code")
      if ((code != 0 && first == 0)); then
        first=$code
        echo "local.sh: process $i ended with exit code $code" >&2
        if ((deadline == 0)); then deadline=$((SECONDS + (code == 75 ? grace_s : settle_s))); fi
      fi
    done
    running=(${still[@]+"${still[@]}"})
    if ((deadline > 0 && SECONDS >= deadline && ${#running[@]} > 0)); then
      echo "local.sh: killing the processes that have not ended: ${running[*]}" >&2
      kill_all
      if ((first == 0 || first == 75)); then first=137; fi
      killed=1
      break
    fi
    if ((${#running[@]} > 0)); then sleep 0.2; fi
  done
  # What one process refuses or was told is the cause; failures of others are a consequence.
  result=$first
  for code in ${codes[@]+"${codes[@]}"}; do
    # 143: asked before Python could handle it, with nothing done. One that had to be killed may not have committed.
    if ((killed == 0 && (code == 75 || (told > 0 && code == 143)))); then result=75; fi
  done
  for code in ${codes[@]+"${codes[@]}"}; do if ((code == 2)); then result=2; fi; done
  wait ${prefixers[@]+"${prefixers[@]}"} 2>/dev/null || true
}

failures=0
while true; do
  start "$@"
  supervise
  if ((result == 0 || result == 2 || told > 0)); then exit "$result"; fi
  if ((result == 75)); then
    if ((restarts == 0)); then exit 75; fi
    echo "local.sh: stopped by another, starting again" >&2
    continue
  fi
  failures=$((failures + 1))
  if ((failures > restarts)); then exit "$result"; fi
  pause_s=$((failures > 6 ? 60 : 1 << (failures - 1)))
  echo "local.sh: failed with exit code $result, restart $failures of $restarts in $pause_s s" >&2
  sleep "$pause_s" & # so that a signal ends the pause
  wait "$!" || true
  if ((told > 0)); then exit "$result"; fi
done
