# A tree is packed, compared, unpacked and packed again, through either mount.
plant from
tar -C from -cf all.tar .
tar -C from --compare -f all.tar
mkdir to
tar -C to -xpf all.tar
tar -C to --compare -f all.tar
diff -r from to

echo later > from/later
tar -C from -rf all.tar ./later
tar -C from --compare -f all.tar
tar -C "$THERE/from" -czf "$THERE/all.tgz" .
mkdir "$SCRATCH/to"
tar -C "$SCRATCH/to" -xpzf all.tgz
diff -r "$THERE/from" "$SCRATCH/to"
tar -C "$THERE/from" --compare -f "$THERE/all.tar"

mkdir "$SCRATCH/links"
echo file > "$SCRATCH/links/file"
ln -s file "$SCRATCH/links/soft"
tar -C "$SCRATCH/links" -cf soft.tar .
mkdir soft
if [ "$STORAGE" = s3 ]; then
    refused 2 "tar: ./soft: Cannot create symlink to 'file': Operation not supported" tar -C soft -xpf soft.tar
else
    tar -C soft -xpf soft.tar
    tar -C soft --compare -f soft.tar
    tar -C from -cf moved.tar ./deep
    mv -T from/deep from/moved
    test ! -e from/deep
    tar -C from --transform s/deep/moved/ --compare -f all.tar ./empty
fi
ln "$SCRATCH/links/file" "$SCRATCH/links/hard"
tar -C "$SCRATCH/links" -cf hard.tar ./file ./hard
mkdir hard
refused 2 "tar: ./hard: Cannot hard link to './file': Operation not permitted" tar -C hard -xpf hard.tar
