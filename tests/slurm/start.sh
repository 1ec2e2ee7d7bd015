#!/usr/bin/env bash
# A SLURM of this machine's own, on loopback: start.sh DIR. All that it has is in DIR; its clients are given
# SLURM_CONF=DIR/slurm.conf, and DIR/bin first in PATH. Ends with 77 where it cannot be had.
set -euo pipefail
dir=$(realpath -m "${1:?a folder}")
cannot() { echo "no SLURM to test with: $1"; exit 77; }

[ "$(id -u)" = 0 ] || cannot "its daemons want root"
if ! { command -v munged && command -v slurmctld && command -v slurmd && command -v sacct; } >/dev/null; then
  command -v apt-get >/dev/null || cannot "slurmctld and munged are not installed, and there is no apt-get"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 ||
    cannot "apt-get install slurm-wlm munge failed"
fi

mkdir -p "$dir"/{bin,munge,state}
chmod 755 "$dir" "$dir/munge"
(umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")

here="NodeHostname=$(hostname) NodeAddr=127.0.0.1 RealMemory=64000"
# No systemd, no cgroups, no accounts. Nodes are taken at their word: all are this machine, and its two cores.
cat >"$dir/slurm.conf" <<END
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
GresTypes=gpu
AccountingStorageType=accounting_storage/none
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
SlurmctldPort=26817
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
NodeName=a Port=26818 CPUs=16 Gres=gpu:5 $here
NodeName=b Port=26819 CPUs=16 $here
NodeName=c Port=26820 CPUs=16 $here
NodeName=d Port=26821 CPUs=16 $here
NodeName=e Port=26822 CPUs=1 $here
NodeName=f Port=26823 CPUs=1 $here
PartitionName=main Nodes=a Default=YES
PartitionName=lone Nodes=b
PartitionName=pair Nodes=c,d
PartitionName=narrow Nodes=e
PartitionName=yielding Nodes=f
PartitionName=urgent Nodes=f PriorityTier=2
END
for i in 0 1 2 3 4; do # a GPU is a device file to SLURM, and any will do
  mknod "$dir/gpu$i" c 1 3
  echo "NodeName=a Name=gpu File=$dir/gpu$i"
done >"$dir/gres.conf"
# The executor's jobs drop all of SLURM's variables before srun, the one that says where SLURM is among them.
printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$dir/slurm.conf" "$(command -v srun)" >"$dir/bin/srun"
chmod +x "$dir/bin/srun"

export SLURM_CONF=$dir/slurm.conf
munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --seed-file="$dir/munge/seed" \
  --pid-file="$dir/munged.pid" --log-file="$dir/munged.log"
slurmctld
for node in a b c d e f; do slurmd -N "$node"; done
for _ in $(seq 100); do
  [ "$(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l)" = 6 ] && exit
  sleep 0.1
done
echo "SLURM does not start: see the logs in $dir"
exit 1
