# A file is edited, with a backup and a swap file, each way vim has to do so; then vim is killed and the edit recovered.
edit() { vim -es -N -u NONE -i NONE --cmd 'set directory=. swapfile' "$@" < /dev/null; }
for copy in auto yes no; do
    mkdir "$HERE/$copy"
    cd "$HERE/$copy"
    printf 'one\ntwo\n' > file
    chmod 640 file
    edit --cmd "set backup writebackup backupcopy=$copy backupext=.old backupdir=. backupskip=" \
        -c '%s/two/three/' -c preserve -c "call writefile(glob('.*.swp', 0, 1), 'swaps')" -c wq file
    test "$(cat file)" = "$(printf 'one\nthree')"
    test "$(cat file.old)" = "$(printf 'one\ntwo')"
    test "$(cat swaps)" = .file.swp
    test "$(stat -c %a file)" = 640
    test ! -e .file.swp
    test "$(cat "$THERE/$copy/file")" = "$(printf 'one\nthree')"
done
refused 137 '' edit -c '%s/three/killed/' -c preserve -c 'silent !kill -9 $PPID' file
test -e .file.swp
# It says that there is a swap file, and ends with 1.
edit -c recover -c 'write! recovered' -c 'quit!' file || test $? = 1
test "$(cat recovered)" = "$(printf 'one\nkilled')"
test "$(cat file)" = "$(printf 'one\nthree')"
