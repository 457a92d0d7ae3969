#!/bin/sh
# Puts what package-lock.json beside this names into the folder that is named, or keeps what is there if it has
# that. Prints the path of the modules.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
mkdir -p "$folder"
exec 9>"$folder.lock"
flock 9
if ! cmp -s "$here/package-lock.json" "$folder/done"; then
    command -v npm >/dev/null || { echo "npm is missing: apt-get install nodejs npm" >&2; exit 1; }
    cp "$here/package.json" "$here/package-lock.json" "$folder/"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --silent) >&2
    # The last step: a folder without it is filled anew.
    cp "$here/package-lock.json" "$folder/done"
fi
echo "$folder/node_modules"
