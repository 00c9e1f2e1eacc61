# What `up` does before anything runs: packages, certificates, who may log in.
# shellcheck shell=bash disable=SC2154 # variables come from lib.sh

policy=/usr/sbin/policy-rc.d
made_policy=no

install_packages() {
    local missing=()
    need() { [ -e "$1" ] || command -v "$1" >/dev/null || missing+=("$2"); }
    need etcd etcd-server
    need containerd containerd
    need runc runc
    need /usr/lib/cni/bridge containernetworking-plugins
    need iptables iptables
    need conntrack conntrack
    need ipset ipset
    need socat socat
    need ip iproute2
    need openssl openssl
    need busybox busybox
    need pkill procps
    need python3 python3
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "missing: ${missing[*]}"
    step "installing: ${missing[*]}"
    # Packages start their daemons when they are installed; these are for us to start.
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | install -m 755 /dev/stdin $policy
        made_policy=yes
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } > "$cache/packages.log" 2>&1 ||
        die "not installed, see $cache/packages.log"
    let_daemons_start
    disable_daemons
}

let_daemons_start() {
    [ $made_policy = no ] || rm -f $policy
    made_policy=no
}

# The daemons of the packages just installed do not come up with the next boot either.
disable_daemons() {
    local unit
    [ -d /run/systemd/system ] || return 0
    for unit in containerd etcd; do
        [[ " ${missing[*]} " != *" $unit"* ]] || systemctl disable --quiet "$unit" || true
    done
}

prepare_state() {
    [ ! -e "$run" ] || [ -z "$(ls -A "$run")" ] || die "$run is not empty and not ours"
    (umask 077; mkdir -p "$run/pki" "$run/machines" "$run/nodes" "$logs" "$run/no-plugins")
    touch "$run/$cgroup"
    install -d -g 10001 -m 2775 "$run/disks"
    raise_inotify
    # In a subshell, so that the report of a failure does not go to this log as well.
    (make_certificates 2> "$logs/certificates.log")
    make_users
    sed -e "s/CONTROL/$control_address/" -e "s|KUBECONFIG|$run/coredns.kubeconfig|" \
        "$here/config/Corefile" > "$run/Corefile"
}

# Three kubelets and containerds watch more than one user may by default; `down` restores it.
raise_inotify() {
    local setting=/proc/sys/fs/inotify/max_user_instances
    [ "$(cat $setting)" -lt 1024 ] || return 0
    cat $setting > "$run/inotify"
    echo 1024 > $setting
}

# certificate NAME SUBJECT [EXTENSION]: signed by our authority.
certificate() {
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -subj "$2" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" -extfile <(printf 'authorityKeyIdentifier=keyid\n%s\n' "${3:-}")
}

make_certificates() (
    cd "$run/pki" || exit
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=jindofs-kube \
        -keyout ca.key -out ca.crt -addext "keyUsage=critical,keyCertSign,digitalSignature"
    local names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost
    certificate apiserver /CN=kube-apiserver \
        "subjectAltName=$names,DNS:kubernetes.default.svc.cluster.local,IP:$service_network.0.1,IP:$control_address,IP:127.0.0.1"
    certificate kubelet-client "/O=system:masters/CN=kube-apiserver-kubelet-client"
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out accounts.key
    openssl pkey -in accounts.key -pubout -out accounts.pub
)

make_users() {
    local name inner=https://127.0.0.1:6443 network=https://$control_address:6443
    add_user admin "https://127.0.0.1:$port" admin '"system:masters"'
    add_user controller-manager $inner system:kube-controller-manager
    add_user scheduler $inner system:kube-scheduler
    add_user coredns $inner coredns
    add_user provisioner $inner provisioner
    add_user kube-proxy "$network" system:kube-proxy
    for name in "${nodes[@]}"; do add_user "$name" "$network" "system:node:$name" '"system:nodes"'; done
}

# add_user FILE SERVER USER [GROUP]: a token for the user and a kubeconfig with it. In JSON, which is YAML too.
add_user() {
    local token
    token=$(openssl rand -hex 16)
    printf '%s,%s,%s,%s\n' "$token" "$3" "$3" "${4:-}" >> "$run/pki/tokens.csv"
    (umask 077; cat > "$run/$1.kubeconfig") <<END
{"apiVersion": "v1", "kind": "Config", "current-context": "jindofs",
 "clusters": [{"name": "jindofs", "cluster": {"server": "$2",
   "certificate-authority-data": "$(base64 -w0 "$run/pki/ca.crt")"}}],
 "users": [{"name": "$3", "user": {"token": "$token"}}],
 "contexts": [{"name": "jindofs", "context": {"cluster": "jindofs", "user": "$3"}}]}
END
}
