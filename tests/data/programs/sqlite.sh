# Two writers at once, one through each mount, with the journal mode MODE. Each has committed what it counts.
write() {
    {
        echo '.timeout 100000'
        echo "PRAGMA journal_mode = $MODE;"
        for number in 1 2 3 4; do
            echo "BEGIN IMMEDIATE;"
            echo "INSERT INTO rows VALUES ('$2', $number, hex(randomblob(3000)));"
            echo "UPDATE count SET number = number + 1;"
            echo "COMMIT;"
        done
    } | sqlite3 -bail "$1/db"
}
sqlite3 -bail db "PRAGMA journal_mode = $MODE;
    CREATE TABLE rows (writer, number, bytes, PRIMARY KEY (writer, number));
    CREATE TABLE count (number);
    INSERT INTO count VALUES (0);"
write "$HERE" here & here=$!
write "$THERE" there & there=$!
wait $here
wait $there
whole() { sqlite3 -bail -separator ' ' "$1/db" "PRAGMA integrity_check; SELECT (SELECT count(*) FROM rows), number FROM count;"; }
for mount in "$HERE" "$THERE"; do
    test "$(whole "$mount")" = "ok
8 8"
done

# What is rolled back has not been; without a journal there is no way back.
if [ "$MODE" != off ]; then
    sqlite3 -bail "$THERE/db" "PRAGMA journal_mode = $MODE; BEGIN; DELETE FROM rows; ROLLBACK;"
fi
sqlite3 -bail "$THERE/db" "PRAGMA journal_mode = $MODE; DELETE FROM rows WHERE writer = 'here'; VACUUM;"
test "$(whole "$HERE")" = "ok
4 8"
