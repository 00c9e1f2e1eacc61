# Shared by the scripts of this directory: where things are, how to wait, how to get into the namespaces.
# shellcheck shell=bash disable=SC2034 # the scripts use what is set here

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export JINDOFS_CACHE=${JINDOFS_CACHE:-$HOME/.cache/jindofs}
cache=$JINDOFS_CACHE/kube
bin=$cache/bin
run=${JINDOFS_KUBE_DIR:-$cache/run}
logs=$run/logs
kubeconfig=$run/admin.kubeconfig
# The only thing that other processes of the machine can see of the cluster: the API server on loopback.
port=${JINDOFS_KUBE_PORT:-16443}

nodes=(n1 n2 n3)
control_services=(etcd apiserver controller-manager scheduler coredns provisioner)
# One network for the machines; the control plane is .254 and the bridge, node N is .N. Pods of node N: 10.244.N.0/24.
network=192.168.50
control_address=$network.254
service_network=10.96
pod_network=10.244
cgroup=jindofs-kube
# Where nodes see the directory of the volumes.
disks=/var/lib/disks

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "needs root: it makes namespaces and cgroups"; }

# wait_until SECONDS WHAT COMMAND...: polls until the command succeeds. WHAT should name the log file.
wait_until() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || { say "not in time: $what" >&2; return 1; }
        sleep 0.2
    done
}

kubectl() { "$bin/kubectl" --kubeconfig "$kubeconfig" "$@"; }

# first_process NAME: the process that is number 1 of the machine NAME (control, n1, ...) as this machine counts;
# fails when it does not run. A number that came to another process meanwhile is recognized by its start time.
first_process() {
    local pid started
    read -r pid started 2>/dev/null < "$run/machines/$1" || return 1
    [ "$(start_time "$pid")" = "$started" ] || return 1
    echo "$pid"
}

# In ticks since boot; empty when there is no such process or only its remains.
start_time() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    read -ra fields <<< "${stat##*) }"
    [ "${fields[0]}" = Z ] || echo "${fields[19]}"
}

# inside NAME COMMAND...: runs a command in all namespaces of a machine.
inside() {
    local pid name=$1
    shift
    pid=$(first_process "$name") || { say "$name does not run" >&2; return 1; }
    nsenter --target "$pid" --mount --uts --ipc --net --pid -- "$@"
}

# boot NAME COMMAND...: starts a machine: a process tree with namespaces of its own, of which COMMAND is number 1.
# Killing that one kills all the others and removes mounts and network: nothing of a machine can survive it.
# Signals wait until the machine is written down, else nobody would find it: in a subshell that notes but ignores them,
# called by scripts that trap them.
boot() (
    local machine=$1 outer pid
    shift
    trap : INT TERM HUP
    setsid unshare --mount --uts --ipc --net --pid --fork --kill-child --propagation private -- "$@" \
        >> "$logs/$machine.log" 2>&1 < /dev/null 9>&- &
    outer=$!
    wait_until 10 "$machine has no first process, see $logs/$machine.log" has_child "$outer"
    pid=$(child_of "$outer")
    echo "$pid $(start_time "$pid")" > "$run/machines/$machine"
)

child_of() { tr -d ' ' < "/proc/$1/task/$1/children"; }
has_child() { [ -n "$(child_of "$1")" ]; }

# halt NAME: SIGKILL to everything of a machine at once.
halt() {
    local pid
    if pid=$(first_process "$1"); then
        kill -KILL "$pid"
        wait_until 20 "$1 (process $pid) does not die" eval "! first_process $1"
    fi
    rm -f "$run/machines/$1"
}

# The roots of the cgroup hierarchies: one per controller in version 1, one for all in version 2.
cgroup_roots() { findmnt -rnt cgroup,cgroup2 -o TARGET; }

make_cgroup() {
    local root path=$cgroup/$1 file
    for root in $(cgroup_roots); do
        mkdir -p "$root/$path"
        # A cpuset is born empty and then takes no process.
        [ ! -e "$root/cgroup.controllers" ] || continue
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$root/$file" ] || tee "$root/$cgroup/$file" "$root/$path/$file" < "$root/$file" >/dev/null
        done
    done
}

# remove_cgroup PATH: the processes in it must be dead or dying.
remove_cgroup() {
    local root
    for root in $(cgroup_roots); do
        wait_until 20 "$root/$1 is still in use" cgroup_gone "$root/$1"
    done
}

cgroup_gone() {
    [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} \; 2>/dev/null
    [ ! -d "$1" ]
}
