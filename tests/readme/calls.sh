#!/bin/sh
# calls.sh README HEADER: the README's table of the API names every call of the header.
set -eu
calls=$(grep '^HPA_API' "$2" | grep -Eo 'hpa_[a-z_]+\(' | tr -d '(')
[ -n "$calls" ]
status=0
for call in $calls; do
    grep '^|' "$1" | grep -q "\`$call\`" || {
        echo "the README's tables do not name $call" >&2
        status=1
    }
done
exit $status
