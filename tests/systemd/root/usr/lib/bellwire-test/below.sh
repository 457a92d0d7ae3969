#!/bin/sh
# Moves itself into a control group below its own, in systemd's hierarchy, and goes on as another
# program:
#
#     below.sh NAME PROGRAM [ARGUMENT...]
set -eu
own=$(sed -n 's/^[0-9]*:name=systemd:/systemd/p' /proc/self/cgroup)
[ -n "$own" ] || own=$(sed -n 's/^0:://p' /proc/self/cgroup)
below=/sys/fs/cgroup/$own/$1
mkdir "$below"
echo $$ > "$below/cgroup.procs"
grep -q "/$1\$" /proc/self/cgroup
shift
exec "$@"
