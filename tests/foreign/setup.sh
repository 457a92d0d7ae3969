#!/bin/sh
# Makes a Python environment in the folder that is named first, with the packages of the file that is
# named second, or keeps the one that is there if it has them. Prints the path of its python.
set -eu
folder=$1
wanted=$2
mkdir -p "$folder"
exec 9>"$folder.lock"
flock 9
if ! cmp -s "$wanted" "$folder/requirements.txt"; then
    command -v python3 >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv" >&2; exit 1; }
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        { echo "python3 cannot make environments: apt-get install python3-venv" >&2; exit 1; }
    python3 -m venv --clear "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --require-hashes --requirement "$wanted" >&2
    # The last step: an environment without it is made anew.
    cp "$wanted" "$folder/requirements.txt"
fi
echo "$folder/bin/python"
