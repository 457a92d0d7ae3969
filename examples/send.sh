#!/bin/sh
# Sends a text to one or more regIds, as an application server does:
#
#     APP_ID=... APP_SECRET=... send.sh TEXT REGID...
#
# PUSH_URL is the server's API, http://127.0.0.1:8090 if unset. Needs curl.
set -eu
[ $# -ge 2 ] || { echo "usage: APP_ID=... APP_SECRET=... send.sh TEXT REGID..." >&2; exit 64; }

text=$(printf %s "$1" | sed 's/[\\"]/\\&/g')
shift
reg_ids=$(printf '"%s",' "$@")
body="{\"messages\": [{\"regID\": [${reg_ids%,}], \"requestID\": \"$(date +%s%N)\", \"appData\": \"$text\"}]}"

# Headers from standard input: arguments can be seen by every user of the machine.
printf 'appID: %s\nappSecret: %s\n' "$APP_ID" "$APP_SECRET" |
    curl --silent --show-error --header @- --data "$body" "${PUSH_URL:-http://127.0.0.1:8090}/spp/pns/api/push"
echo
