# What all scripts begin with. HERE is a new directory of the mount; THERE is the same directory through the same mount or through
# a second one; STORAGE is local or s3; SCRATCH is a directory of a local disk.
cd "$HERE"

# refused STATUS TEXT COMMAND...: the command ends with this status and says so.
refused() {
    wanted=$1 text=$2
    shift 2
    status=0
    said=$("$@" 2>&1) || status=$?
    echo "$said"
    test "$status" = "$wanted"
    case $said in *"$text"*) ;; *) echo "not said: $text"; exit 1 ;; esac
}

# Files of many lengths, an empty one and an empty directory below $1.
plant() {
    mkdir -p "$1/deep/deeper" "$1/empty"
    for length in 0 1 511 4096 70001; do
        head -c "$length" /dev/urandom > "$1/deep/file-$length"
    done
    head -c 5000001 /dev/urandom > "$1/deep/deeper/large"
    echo odd > "$1/an odd \\ name"
    chmod 640 "$1/deep/file-1"
    chmod 755 "$1/deep/file-511"
}
