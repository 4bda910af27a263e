"""Configuration of the virtual cluster; `virtual_slurm` fills in folders and ports."""

from pathlib import Path

SLURM_CONF = """\
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket
MpiDefault=none
{plugins}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=2,bf_continue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd-%n.pid
SlurmdSpoolDir={state}/slurmd-%n
StateSaveLocation={state}/ctld
SlurmdTimeout=5
InactiveLimit=0
KillWait=2
MinJobAge=300
MaxArraySize=10001
MailProg=/bin/true
{accounting}
{nodes}
PartitionName=main Nodes=ALL Default=YES DefaultTime=00:10:00 MaxTime=04:00:00 PriorityTier=5
PartitionName=low Nodes=ALL MaxTime=04:00:00 PriorityTier=1
PartitionName=cancelled Nodes=ALL MaxTime=04:00:00 PriorityTier=1 PreemptMode=CANCEL
PartitionName=minute Nodes=ALL MaxTime=00:01:00 PriorityTier=5
"""
NO_CGROUPS = "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none"
CGROUPS = "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup"
CGROUP_CONF = "ConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n"
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={run}/munge.socket
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
PidFile={run}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""
# A database that may lose everything at a crash, and therefore starts in a second.
SMALL_DATABASE = [
    "--innodb-data-file-path=ibdata1:10M:autoextend",
    "--innodb-undo-tablespaces=0",
    "--innodb-log-file-size=8M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-doublewrite=0",
    "--debug-no-sync",
]
# Inside a node's namespaces: its name, the names of all, and a first process that reaps.
BOOT = """\
hostname "$1"; mount --bind "$2" /etc/hosts; shift 2
"$@" & trap 'kill $!' TERM; wait
"""

# What sacctmgr is told: a debug QOS, one with a submit limit, and an account for root.
ACCOUNTS = (
    "add cluster virtual",
    "add qos debug,one",
    "modify qos one set MaxSubmitJobsPerUser=1 flags=DenyOnLimit",
    "modify qos debug set MaxWall=00:15:00 flags=DenyOnLimit",
    "add account test cluster=virtual",
    "add user root cluster=virtual account=test",
    "modify user where name=root cluster=virtual set qos=normal,debug,one "
    "defaultaccount=test defaultqos=normal",
)


def cgroup_conf(enforce_memory: bool, version: str) -> str:
    """The text of cgroup.conf for slurmd of that version."""
    if enforce_memory:
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        return CGROUP_CONF + ("IgnoreSystemd=yes\n" if unified else "")
    # Since 23.11 slurmd insists on cgroups unless told; before, it does not know the word.
    return "CgroupPlugin=disabled\n" if int(version.split(".")[0]) >= 23 else ""
