# A tree is copied to the mount, twice, changed, and copied back through the other mount.
plant "$SCRATCH/from"
rsync -a "$SCRATCH/from/" to/
test -z "$(rsync -a --itemize-changes "$SCRATCH/from/" to/)"
test -z "$(rsync -a --checksum --itemize-changes "$SCRATCH/from/" to/)"
diff -r "$SCRATCH/from" to

echo more >> "$SCRATCH/from/deep/deeper/large"
rm "$SCRATCH/from/deep/file-4096"
rsync -a --delete --no-whole-file "$SCRATCH/from/" to/
echo most >> "$SCRATCH/from/deep/deeper/large"
rsync -a --inplace --no-whole-file "$SCRATCH/from/" to/
test -z "$(rsync -a --delete --itemize-changes "$SCRATCH/from/" to/)"
diff -r "$SCRATCH/from" to

rsync -a "$THERE/to/" "$SCRATCH/back/"
diff -r "$SCRATCH/from" "$SCRATCH/back"
test -z "$(rsync -a --delete --itemize-changes "$SCRATCH/from/" "$SCRATCH/back/")"

mkdir "$SCRATCH/links"
echo file > "$SCRATCH/links/file"
ln -s file "$SCRATCH/links/soft"
if [ "$STORAGE" = s3 ]; then
    refused 23 "symlink \"$HERE/links/soft\" -> \"file\" failed: Operation not supported (95)" \
        rsync -a "$SCRATCH/links/" links/
else
    rsync -a "$SCRATCH/links/" links/
    test "$(readlink links/soft)" = file
fi
ln "$SCRATCH/links/file" "$SCRATCH/links/hard"
refused 23 "failed: Operation not permitted (1)" rsync -aH --no-links "$SCRATCH/links/" hard/
# Without -H they are files of their own.
rsync -a --no-links "$SCRATCH/links/" hard/
diff hard/file hard/hard

# The name of an object does not end with a blank.
if [ "$STORAGE" = s3 ]; then
    mkdir "$SCRATCH/blank"
    echo blank > "$SCRATCH/blank/blank "
    refused 23 '-> "blank ": Invalid argument (22)' rsync -a "$SCRATCH/blank/" blank/
    test -z "$(ls -A blank)"
fi
