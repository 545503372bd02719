#!/usr/bin/env bash
# One training job on a Cloud TPU slice: create it, install, run on all workers, watch, recreate it when it is
# preempted, and delete it at the end.
#
#   launch/tpu_vm.sh --name NAME --zone ZONE --type TYPE --version VERSION [options] -- <r2rank arguments>
#   launch/tpu_vm.sh --name r2rank --zone europe-west4-b --type v5p-16 --version v2-alpha-tpuv5 --spot \
#     --setup 'sudo mkdir -p /shared && sudo mount 10.0.0.2:/shared /shared && ln -sfn /shared/{data,models,runs} .' \
#     -- sft --config configs/qwen2_5_3b_v5p16.py --run-dir runs/qwen2_5_3b
#
#   --project P   project, unless gcloud has a default
#   --spot        capacity that may be preempted     --reserved   capacity of a reservation
#   --setup CMD   run on every worker of a new slice, in the folder of the code, before r2rank is installed.
#                 Mount the file system that all workers share here: run directories must be on it.
#   --keep        do not delete the slice at the end
#   --dry-run     print every command, and run none
#
# It runs on any machine with gcloud and this repository; the committed files are copied. The training does not depend
# on the ssh connection. For several workers, gcloud needs its key in an agent: ssh-add ~/.ssh/google_compute_engine
#
# Ends with 0 when all processes have ended with 0, and with 2 at once when one was refused. After 75 (stopped and
# committed) and after a preemption it runs the job again, as often as it happens. Other failures are repeated
# R2RANK_RESTARTS times; then it ends with the exit code. Ctrl-C and SIGTERM stop all processes and end with 75 if they
# have committed.
#
# Settings, from the environment:
#   R2RANK_RESTARTS    repetitions after failures                                (default: 5)
#   R2RANK_BACKOFF_S  pause before the first repetition; doubles, up to 10 min  (default: 30)
#   R2RANK_POLL_S     seconds between looks at the slice and its processes      (default: 30)
#   R2RANK_GRACE_S    time that processes have to end after the first one ended (default: 180)
set -euo pipefail
exec 3>&1

usage() {
  echo "usage: launch/tpu_vm.sh --name NAME --zone ZONE --type TYPE --version VERSION" \
    "[--project P] [--spot | --reserved] [--setup CMD] [--keep] [--dry-run] -- <r2rank arguments>" >&2
  exit 2
}

say() { echo "tpu_vm.sh: $*" >&2; }

name="" zone="" type="" version="" setup="" keep=false dry=false
create_flags=() location=()
while (($# > 0)); do
  case $1 in
    --name | --zone | --type | --version | --setup | --project)
      (($# >= 2)) || usage
      if [[ $1 == --project ]]; then location+=(--project "$2"); else declare "${1#--}=$2"; fi
      shift 2
      ;;
    --spot | --reserved) create_flags+=("$1") && shift ;;
    --keep) keep=true && shift ;;
    --dry-run) dry=true && shift ;;
    --) shift && break ;;
    *) usage ;;
  esac
done
[[ -n $name && -n $zone && -n $type && -n $version && $# -ge 1 ]] || usage
location+=(--zone "$zone")
retries=${R2RANK_RESTARTS:-5} backoff_s=${R2RANK_BACKOFF_S:-30}
poll_s=${R2RANK_POLL_S:-30} grace_s=${R2RANK_GRACE_S:-180}
[[ $retries$backoff_s$poll_s$grace_s =~ ^[0-9]+$ ]] || usage
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
worker="bash r2rank/launch/tpu_worker.sh"
printf -v start_command '%q ' "$@"

# Runs a command; with --dry-run, prints it in a form that a shell can read.
call() {
  if $dry; then
    printf '%q ' "$@" >&3
    echo >&3
  else
    "$@" </dev/null
  fi
}

# In the background, so that a signal ends the pause.
pause() {
  if $dry; then return; fi
  sleep "$1" &
  wait "$!"
}

on_workers() { call gcloud compute tpus tpu-vm ssh "$name" "${location[@]}" --worker=all --command "$1"; }

# State of the queued resource or of the slice in `state`: what Google names it, or `absent`, or `unknown` if gcloud
# cannot tell at the moment.
look() {
  local describe=(gcloud compute tpus "$1" describe "$name" "${location[@]}" --format "value($2)")
  if $dry; then
    call "${describe[@]}"
    state=$dry_state
  elif ! state=$("${describe[@]}" </dev/null 2>"$temporary/errors"); then
    if grep -qi 'not[_ ]found' "$temporary/errors"; then state=absent; else state=unknown; fi
  fi
}
look_at_queue() { look queued-resources state.state; }
look_at_slice() { look tpu-vm state; }

delete() {
  dry_state=absent
  call gcloud compute tpus queued-resources delete "$name" "${location[@]}" --force --quiet
}

# A queued resource waits for capacity; once it is active, the slice of the same name exists. Then the code is copied
# and installed, once for each slice.
provision() {
  local unknown=0 told="" quoted
  existed=false
  while look_at_queue && [[ $state != ACTIVE ]]; do
    case $state in
      absent)
        say "creating $name ($type in $zone)"
        installed=false
        dry_state=ACTIVE
        call gcloud compute tpus queued-resources create "$name" "${location[@]}" --node-id "$name" \
          --accelerator-type "$type" --runtime-version "$version" ${create_flags[@]+"${create_flags[@]}"} || return 1
        continue
        ;;
      FAILED | SUSPENDED)
        say "$name is $state, deleting it"
        delete || return 1
        continue
        ;;
      unknown)
        cat "$temporary/errors" >&2
        if ((++unknown >= 10)); then return 1; fi
        ;;
    esac
    if [[ $state != "$told" ]]; then say "$name is $state, waiting" && told=$state; fi
    pause "$poll_s"
  done
  existed=true
  if $installed; then return; fi
  call git -C "$root" archive --format tar.gz --output "$temporary/r2rank.tar.gz" HEAD || return 1
  call gcloud compute tpus tpu-vm scp "$temporary/r2rank.tar.gz" "$name:" "${location[@]}" --worker=all || return 1
  on_workers "mkdir -p r2rank && tar -xzf r2rank.tar.gz -C r2rank" || return 1
  if [[ -n $setup ]]; then
    printf -v quoted '%q' "$setup"
    on_workers "cd r2rank && bash -euc $quoted" || return 1
  fi
  on_workers "$worker install" || return 1
  installed=true
}

# Whether the slice is no longer there. It is deleted then, so that `provision` creates a new one.
gone() {
  if $dry; then return 1; fi
  look_at_queue
  if [[ $state == ACTIVE ]]; then look_at_slice; fi
  case $state in
    absent | FAILED | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED | STOPPED) ;;
    *) return 1 ;;
  esac
  say "$name is $state"
  while [[ $state == SUSPENDING ]]; do pause "$poll_s" && look_at_queue; done
  if [[ $state != absent ]]; then delete || true; fi
}

# States of all workers in `states`, separated by blanks.
look_at_workers() {
  local output
  output=$(on_workers "$worker status") || return 1
  states=$(sed -n 's/.*r2rank-state=//p' <<<"$output" | tr '\n' ' ')
  if $dry; then states="0 "; fi
  [[ -n $states ]]
}

# Sends SIGTERM, and SIGKILL to what still runs after the grace period.
stop() {
  local deadline=$((SECONDS + grace_s))
  on_workers "$worker stop" || true
  while look_at_workers && [[ $states == *running* ]] && ((SECONDS < deadline)); do pause 1; done
  if [[ $states == *running* ]]; then on_workers "$worker kill" || true; fi
}

# Waits until all processes have ended. `outcome` becomes their common exit code: 2 if one was refused, then the code
# of a failure, then 75, then 0; or `preempted`, or `unreachable`.
watch() {
  local unreachable=0 ended_s="" code
  while true; do
    if gone; then outcome=preempted && return; fi
    if ! look_at_workers; then
      if ((++unreachable >= 10)); then outcome=unreachable && return; fi
      pause "$poll_s"
      continue
    fi
    unreachable=0
    if [[ $states == *running* && " $states" != *" 2 "* ]]; then
      if [[ $states == *[0-9]* || $states == *lost* ]]; then : "${ended_s:=$SECONDS}"; fi
      if [[ -z $ended_s ]] || ((SECONDS - ended_s < grace_s)); then
        pause "$poll_s"
        continue
      fi
    fi
    break
  done
  if [[ $states == *running* ]]; then say "some processes ended, stopping the others" && stop; fi
  outcome=0
  for code in $states; do
    case $code in
      2) outcome=2 && return ;;
      0) ;;
      75) if [[ $outcome == 0 ]]; then outcome=75; fi ;;
      running | lost) outcome=1 ;;
      *) outcome=$code ;;
    esac
  done
}

finish() {
  local code=$?
  trap - EXIT
  trap '' INT TERM
  if ! $keep; then
    look_at_queue
    if [[ $state != absent ]] && ! delete; then say "could not delete $name; delete it yourself, it costs money"; fi
  fi
  if ! $dry; then rm -rf "$temporary"; fi
  exit "$code"
}

interrupt() {
  trap '' INT TERM
  if ! $started; then exit 130; fi
  say "stopping all processes"
  stop
  [[ $states =~ ^((0|75)\ )+$ ]] && exit 75
  exit 130
}

installed=false existed=false started=false state="" states="" outcome="" failures=0 dry_state=absent
temporary="${TMPDIR:-/tmp}/r2rank"
if ! $dry; then
  temporary=$(mktemp -d)
  if [[ -n $(git -C "$root" status --porcelain) ]]; then say "changes that are not committed will not be copied"; fi
fi
trap finish EXIT
trap interrupt INT TERM

while true; do
  outcome=1
  if provision && started=true && on_workers "$worker start $start_command"; then
    watch
  elif $existed && gone; then
    outcome=preempted
  elif $started; then
    stop # what did start
  fi
  started=false
  case $outcome in
    0 | 2) say "ended with exit code $outcome" && exit "$outcome" ;;
    75 | preempted) say "$outcome: running the job again" && continue ;;
    unreachable)
      delete || true
      outcome=1
      ;;
  esac
  if ((++failures > retries)); then say "exit code $outcome, failure $failures: giving up" && exit "$outcome"; fi
  say "exit code $outcome, failure $failures of at most $retries; running the job again in $backoff_s s"
  pause "$backoff_s"
  backoff_s=$((backoff_s * 2 < 600 ? backoff_s * 2 : 600))
done
