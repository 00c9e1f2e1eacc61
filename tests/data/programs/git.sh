# A repository is made, changed and packed through one mount and cloned through the other.
git init -q repo
cd repo
for number in 1 2; do
    mkdir -p "src/$number"
    echo "$number" > "src/$number/file"
    chmod +x "src/$number/file"
    git add .
    git commit -q -m "commit $number"
done
git checkout -q -b topic HEAD~1
echo topic > topic
git add topic
git commit -q -m topic
git checkout -q main
git mv src/2/file src/2/moved
git commit -q -m moved
git merge -q -m merged topic
git gc -q --prune=now
git worktree add -q ../tree topic
( cd ../tree && echo more >> topic && git commit -q -a -m more )
git merge -q -m again topic
git worktree remove ../tree
git fsck --full --strict

git clone -q --bare . ../bare
git clone -q "$THERE/bare" "$THERE/clone"
( cd "$THERE/clone" && echo pushed > pushed && git add pushed && git commit -q -m pushed && git push -q origin main )
pushed=$(git -C "$THERE/clone" rev-parse HEAD)
git pull -q "$HERE/bare" main
test "$(git rev-parse HEAD)" = "$pushed"
diff -r -x .git . "$THERE/clone"
git -C "$THERE/bare" fsck --full --strict
test -z "$(git status --porcelain)"

if [ "$STORAGE" = s3 ]; then
    test "$(git config core.symlinks)" = false
    git worktree add -q ../tree topic
    refused 128 "fatal: renaming 'src/1' failed: Invalid cross-device link" git mv src/1 src/renamed
    refused 128 "fatal: failed to move '$HERE/tree' to '../elsewhere': Invalid cross-device link" \
        git worktree move ../tree ../elsewhere
else
    ln -s topic link
    git add link
    git mv src/1 src/renamed
    git commit -q -m "a link, and a directory that moved"
    git worktree add -q ../tree HEAD
    test "$(readlink ../tree/link)" = topic
    git worktree move ../tree ../elsewhere
    git -C ../elsewhere status --porcelain
fi
