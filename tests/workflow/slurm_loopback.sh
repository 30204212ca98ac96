#!/usr/bin/env bash
# A SLURM of this machine alone with pretended GPUs, for the tests of profiles/slurm; root and Debian's packages
# slurm-wlm and munge are needed.
#   slurm_loopback.sh start FOLDER [GPUS] [CPUS]    the daemons' state and logs are kept in FOLDER
#   slurm_loopback.sh stop FOLDER                   ends what start started, and removes its configuration
set -euo pipefail
folder=$2 gpus=${3:-4} cpus=${4:-8} host=$(hostname -s)
# SLURM_CONF does not reach the jobs, so the configuration must be where SLURM looks for it by itself.
settings=(/etc/slurm/slurm.conf /etc/slurm/gres.conf)

start() {
    for file in "${settings[@]}"; do
        [ ! -e "$file" ] || { echo "$file exists: this machine has a SLURM of its own" >&2; exit 3; }
    done
    mkdir -p "$folder"/{controller,spool} /etc/slurm
    if ! pgrep -x munged >/dev/null; then
        install -d -o munge -g munge -m 755 /run/munge
        setpriv --reuid munge --regid munge --clear-groups munged --pid-file /run/munge/munged.pid
        touch "$folder/munged-is-ours"
    fi
    cat >/etc/slurm/slurm.conf <<CONF
ClusterName=pretended
SlurmctldHost=$host(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/controller
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1
GresTypes=gpu
MpiDefault=none
MinJobAge=3600
KillWait=2
ReturnToService=2
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=200000 Gres=gpu:pretended:$gpus State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    # Any character device will do as the file of a GPU that nobody opens.
    echo "Name=gpu Type=pretended File=/dev/tty[0-$((gpus - 1))]" >/etc/slurm/gres.conf
    slurmctld
    slurmd
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --format %T 2>/dev/null)" = idle ] && return
        sleep 0.5
    done
    echo "the node never became idle:" >&2
    tail -n 5 "$folder"/slurm*.log >&2
    exit 1
}

stop() {
    scancel --quiet --user root 2>/dev/null || true
    for _ in $(seq 20); do
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 0.5
    done
    for daemon in slurmd slurmctld; do
        end "$folder/$daemon.pid"
    done
    [ ! -f "$folder/munged-is-ours" ] || end /run/munge/munged.pid
    rm -f "${settings[@]}"
}

# End a daemon for certain.
end() {
    [ -f "$1" ] || return 0
    local process
    process=$(cat "$1")
    kill "$process" 2>/dev/null || return 0
    for _ in $(seq 20); do
        kill -0 "$process" 2>/dev/null || return 0
        sleep 0.25
    done
    kill -KILL "$process" 2>/dev/null || true
}

"$1"
