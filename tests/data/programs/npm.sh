# A package is installed from its directory, as a link and as a copy, and from an archive, which is then replaced by a newer one.
export npm_config_cache="$SCRATCH/npm" npm_config_offline=true npm_config_audit=false npm_config_fund=false
export npm_config_update_notifier=false
mkdir -p greet/lib app
cat > greet/package.json <<'END'
{"name": "greet", "version": "1.0.0", "main": "lib/index.js", "bin": {"greet": "bin.js"}}
END
echo 'module.exports = "hello"' > greet/lib/index.js
printf '#!/usr/bin/env node\nconsole.log(require("greet"))\n' > greet/bin.js
cd app
fresh() {
    rm -rf node_modules package-lock.json
    echo '{"name": "app", "version": "1.0.0"}' > package.json
}
greets() { test "$(node -e 'console.log(require("greet"))')" = "$1"; }

fresh
if [ "$STORAGE" = s3 ]; then
    # What npm says is libuv's text for EOPNOTSUPP.
    refused 161 "npm error ENOTSUP: operation not supported on socket, symlink '../../greet' -> '$HERE/app/node_modules/greet'" \
        npm install file:../greet
    fresh
    refused 161 "symlink '../greet/bin.js' -> '$HERE/app/node_modules/.bin/greet'" npm install --install-links file:../greet
else
    npm install file:../greet
    test "$(readlink node_modules/greet)" = ../../greet
    greets hello
    fresh
    npm install --install-links file:../greet
    test ! -L node_modules/greet
    test "$(node_modules/.bin/greet)" = hello
fi

fresh
( cd ../greet && npm pack --pack-destination .. )
npm install --no-bin-links file:../greet-1.0.0.tgz
greets hello
sed -i 's/1.0.0/1.1.0/' ../greet/package.json
echo 'module.exports = "again"' > ../greet/lib/index.js
( cd ../greet && npm pack --pack-destination .. )
npm install --no-bin-links file:../greet-1.1.0.tgz
greets again
npm ls greet@1.1.0
npm ci --no-bin-links
( cd "$THERE/app" && greets again && npm ls greet@1.1.0 )
npm uninstall greet
test ! -e node_modules/greet
