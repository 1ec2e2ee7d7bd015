#!/usr/bin/env bash
# Ends what `start.sh DIR` started, and nothing else.
set -u
dir=${1:?a folder}
export SLURM_CONF=$dir/slurm.conf
if [ -s "$dir/slurmctld.pid" ]; then
  scancel --me --signal=KILL
  scancel --me
  for _ in $(seq 50); do
    [ -z "$(squeue --noheader)" ] && break
    sleep 0.2
  done
fi
for file in "$dir"/*.pid; do
  [ -s "$file" ] && kill "$(cat "$file")" 2>/dev/null
done
exit 0
