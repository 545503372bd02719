#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on every worker of a TPU slice, over ssh. It works in the folder above its own.
#
#   tpu_worker.sh install                    create .venv with r2rank in it
#   tpu_worker.sh start <r2rank arguments>   run r2rank in the background; its output is appended to r2rank.log
#   tpu_worker.sh status                     print r2rank-state=running, =lost, or = and the exit code
#   tpu_worker.sh stop                       send SIGTERM to r2rank
#   tpu_worker.sh kill                       send SIGKILL to r2rank and its children
#
# R2RANK_COMMAND replaces the command `.venv/bin/r2rank` (split at blanks).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# `start` makes the process the leader of a group, whose id it writes to `pid`.
alive() { [[ -f pid ]] && kill -0 -- "-$(<pid)" 2>/dev/null; }

case ${1:-} in
  install)
    # Images of TPU VMs have Python 3.10, and r2rank needs 3.11 or newer; uv brings its own.
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python '.[tpu,gs]'
    ;;
  start)
    shift
    # A process that was killed may hold the TPU for a while.
    for _ in {1..60}; do
      alive || break
      sleep 1
    done
    if alive; then
      echo "tpu_worker.sh: process $(<pid) of an earlier start is still running" >&2
      exit 1
    fi
    rm -f exit-code pid
    read -r -a command <<<"${R2RANK_COMMAND:-.venv/bin/r2rank}"
    # A session of its own outlives the ssh connection. The shell passes SIGTERM on to r2rank alone, not to processes
    # that load its data, and writes down its exit code; the file appears under its name only when it is complete.
    # shellcheck disable=SC2016
    R2RANK_CLUSTER=auto setsid bash -c '
      told=false
      "$@" &
      trap "told=true; kill -TERM $! 2>/dev/null" TERM
      while true; do
        code=0
        wait "$!" || code=$?
        $told || break
        told=false # the signal ended `wait`, not r2rank
      done
      echo "$code" >exit-code.new && mv exit-code.new exit-code
    ' r2rank "${command[@]}" "$@" </dev/null >>r2rank.log 2>&1 &
    echo "$!" >pid
    ;;
  status)
    if [[ -f exit-code ]]; then
      echo "r2rank-state=$(<exit-code)"
    elif alive; then
      echo "r2rank-state=running"
    else
      echo "r2rank-state=lost" # killed with the shell around it, or the machine was restarted
    fi
    ;;
  stop)
    if alive; then kill -TERM "$(<pid)" || true; fi
    ;;
  kill)
    if alive; then kill -KILL -- "-$(<pid)" || true; fi
    ;;
  *)
    echo "usage: tpu_worker.sh install | start <r2rank arguments> | status | stop | kill" >&2
    exit 2
    ;;
esac
