#!/bin/sh
# An app at the shell: all of org.bellwire.Push(7) that a script needs.
#
#     app.sh APP-ID            registers, and acts on messages; those that came meanwhile are the first
#     app.sh APP-ID --leave    deregisters: the regId is dead for good
#     app.sh --api             lists what the daemon has for apps
#
# bellwired is on the session bus. Needs bellwire, busctl (Debian's systemd) and jq.
#
# An app is connected as long as the bus name that called Connect lives, and each run of busctl has a
# name of its own. So what only a connected app may do is done by bellwire, everything else by busctl.
set -eu

# push call METHOD [SIGNATURE ARGUMENT...], push get-property NAME, push introspect
push() {
    verb=$1
    shift
    busctl --user "$verb" org.bellwire.Push /org/bellwire/Push org.bellwire.Push1 "$@"
}

# Prints the app's badge. busctl prints the type as well: u 3
badge() {
    answer=$(push call GetBadge s "$app")
    echo "badge ${answer#u }"
}

# Prints a member of the message.
member() { printf '%s\n' "$event" | jq --raw-output ".$1 // empty"; }

case ${1-} in
    --api) push introspect; exit ;;
    '' | -*) echo "usage: app.sh APP-ID [--leave], or app.sh --api" >&2; exit 64 ;;
esac
app=$1
if [ "${2-}" = --leave ]; then exec bellwire app deregister "$app"; fi

link=$(push get-property LinkState)
echo "link ${link#s }"
reg_id=$(bellwire register "$app")
echo "regId $reg_id" # for the app's own server
badge
push call SetBadge su "$app" 0 # the user has seen it all
badge

# A line of JSON for each message. What is printed is delivered; what comes while nobody listens is kept.
bellwire --json listen "$app" | while read -r event; do
    [ "$(member event)" = message ] || continue
    # Here a real script does its work.
    printf 'message id=%s app_data=%s\n' "$(member id)" "$(member app_data)"
done
